"""A client of the service: `Client` for ordinary code, `AsyncClient` for asyncio, the same methods in both.

Knows HTTP and the shapes of the service's answers; no model, no index, no web framework, so importing it is quick. A
call is described and its answer read in `calls`, without any network; the two clients only send.
"""

from app.client.aio import AsyncClient
from app.client.audio import Audio
from app.client.calls import DetectOptions, SearchOptions
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
    "DetectOptions",
    "Detection",
    "DetectionEnd",
    "DetectionEvent",
    "DetectionFrames",
    "DetectionProgress",
    "DetectionStart",
    "Embedded",
    "Event",
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
