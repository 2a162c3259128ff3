"""A typed client of the HTTP API: `Client` for synchronous code, `AsyncClient` for asyncio, with the same methods.

`calls` describes requests and reads responses without any network; the two clients only send. Importing the package
loads httpx and NumPy, but no model.
"""

from app.client.aio import AsyncClient
from app.client.calls import Audio, Cut, DetectOptions, Example, SearchOptions
from app.client.errors import (
    Busy,
    NotFound,
    Problem,
    Refused,
    ServerError,
    ServerFault,
    Stopped,
    Unauthorized,
    Unreachable,
)
from app.client.retry import DEFAULT_SERVER
from app.client.sync import Client
from app.client.types import (
    Added,
    AudioEmbedding,
    Clip,
    Detection,
    DetectionEnd,
    DetectionEvent,
    DetectionFrames,
    DetectionProgress,
    DetectionStart,
    Embedded,
    Event,
    FileError,
    Hit,
    Info,
    Label,
    Moment,
    MomentHit,
    MomentResult,
    Peaks,
    PhraseEvents,
    SearchResult,
    to_json,
)

__all__ = [
    "DEFAULT_SERVER",
    "Added",
    "AsyncClient",
    "Audio",
    "AudioEmbedding",
    "Busy",
    "Client",
    "Clip",
    "Cut",
    "DetectOptions",
    "Detection",
    "DetectionEnd",
    "DetectionEvent",
    "DetectionFrames",
    "DetectionProgress",
    "DetectionStart",
    "Embedded",
    "Event",
    "Example",
    "FileError",
    "Hit",
    "Info",
    "Label",
    "Moment",
    "MomentHit",
    "MomentResult",
    "NotFound",
    "Peaks",
    "PhraseEvents",
    "Problem",
    "Refused",
    "SearchOptions",
    "SearchResult",
    "ServerError",
    "ServerFault",
    "Stopped",
    "Unauthorized",
    "Unreachable",
    "to_json",
]
