"""From the JSON of the service's answers to the types of the client.

Reads the members it knows and leaves what a newer service may add; a missing one is a KeyError.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from app.client.types import (
    Added,
    AudioEmbedding,
    Clip,
    ClipPage,
    Detection,
    DetectionEnd,
    DetectionEvent,
    DetectionFrames,
    DetectionMessage,
    DetectionProgress,
    DetectionStart,
    Embedded,
    Event,
    FileError,
    Hit,
    Info,
    Label,
    ModelInfo,
    Moment,
    MomentHit,
    MomentResult,
    Peaks,
    PhraseEvents,
    SearchResult,
)

Json = Mapping[str, Any]


def clip(json: Json) -> Clip:
    """A clip."""
    return Clip(**_only(Clip, json))


def clip_page(json: Json) -> ClipPage:
    """GET /clips."""
    return ClipPage(tuple(map(clip, json["clips"])), json["next_cursor"])


def added(json: Json, new: bool) -> Added:
    """POST /clips."""
    return Added(tuple(map(clip, json["clips"])), file_errors(json["errors"]), new)


def file_errors(json: Iterable[Json]) -> tuple[FileError, ...]:
    """The members `errors` of answers about several files."""
    return tuple(
        FileError(e["filename"], e["problem"].get("detail") or e["problem"]["title"], e["problem"]["status"])
        for e in json
    )


def embedded(json: Json) -> Embedded:
    """POST /embed with files, in base64."""
    dim = json["dim"]
    audio = tuple(
        AudioEmbedding(
            a["filename"],
            a["duration"],
            _floats(a["embedding"]),
            None if a["frames"] is None else _floats(a["frames"]["embeddings"]).reshape(-1, dim),
            None if a["frames"] is None else a["frames"]["hop"],
        )
        for a in json["audio"]
    )
    return Embedded(json["model"], audio, file_errors(json.get("errors", [])))


def text_embeddings(json: Json) -> np.ndarray:
    """POST /embed with texts, in base64: (N, D) float32."""
    return np.stack([_floats(text["embedding"]) for text in json["texts"]])


def search_result(json: Json) -> SearchResult:
    """POST /search and GET /clips/{id}/similar."""
    return SearchResult(json["query"], json["took_ms"], tuple(map(_hit, json["hits"])))


def moment_result(json: Json) -> MomentResult:
    """POST /search/moments."""
    query = json["query"]
    hits = tuple(
        MomentHit(clip(h["clip"]), h["start"], h["end"], h["score"], _moments(h.get("parts"))) for h in json["hits"]
    )
    return MomentResult(query if isinstance(query, str) else tuple(query), json["took_ms"], json["candidates"], hits)


def peaks(json: Json) -> Peaks:
    """GET /clips/{id}/peaks."""
    return Peaks(json["duration"], np.array(json["peaks"], np.float32).reshape(-1, 2))


def labels(json: Json) -> tuple[Label, ...]:
    """POST /classify."""
    return tuple(Label(**_only(Label, label)) for label in json["labels"])


def detection(json: Json) -> Detection:
    """POST /detect."""
    phrases = tuple(
        PhraseEvents(
            p["phrase"],
            p["clip_score"],
            p["max_score"],
            tuple(Event(**_only(Event, e)) for e in p["events"]),
            None if p.get("frame_scores") is None else np.array(p["frame_scores"], np.float32),
        )
        for p in json["phrases"]
    )
    return Detection(json["filename"], json["duration"], json["frame_hop"], phrases)


def detection_message(json: Json) -> DetectionMessage | None:
    """A line of a streamed detection; None for kinds that this client does not know."""
    match json["type"]:
        case "start":
            return DetectionStart(**_only(DetectionStart, json) | {"phrases": tuple(json["phrases"])})
        case "progress":
            return DetectionProgress(json["position"])
        case "event":
            return DetectionEvent(**_only(DetectionEvent, json))
        case "frames":
            return DetectionFrames(json["first"], np.array(json["scores"], np.float32))
        case "end":
            return DetectionEnd(detection(json))
    return None


def info(json: Json) -> Info:
    """GET /info."""
    return Info(json["version"], ModelInfo(**_only(ModelInfo, json["model"])), json["clips"], dict(json["limits"]))


def _hit(json: Json) -> Hit:
    return Hit(clip(json["clip"]), json["similarity"], json["score"], _moments(json.get("moments")))


def _moments(json: Iterable[Json] | None) -> tuple[Moment, ...] | None:
    return None if json is None else tuple(Moment(**_only(Moment, moment)) for moment in json)


def _only(kind: Any, json: Json) -> dict[str, Any]:
    return {f.name: json[f.name] for f in dataclasses.fields(kind)}


def _floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
