"""Example requests and responses for the OpenAPI document; app.api.schemas has the models.

No example contains null, because FastAPI drops it from the document.
"""

from __future__ import annotations

from typing import Any

_VECTOR = [0.0612, -0.0184, 0.0437]  # shortened
MOMENT: dict[str, Any] = {"start": 1.12, "end": 2.08, "score": 0.934}
CLIP: dict[str, Any] = {
    "id": "b2c1f0de7d5a4f6f9b0c8f6f3c1d2e4a",
    "filename": "dog barking.ogg",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "duration": 3.2,
    "sample_rate": 44_100,
    "channels": 1,
    "created": "2026-03-01T08:30:00.000000Z",
    "metadata": {"tags": ["dog", "field"]},
}
ADDED = {"clips": [CLIP], "errors": []}
DUPLICATES = {"groups": [[CLIP, CLIP | {"id": "0d6e3a5b9c1f4d27a8e4b7c2f9a01d35", "filename": "dog.mp3"}]]}
PAGE = {"clips": [CLIP], "next_cursor": "YmVmb3JlOjQx"}
PATCH = {"merge": {"metadata": {"place": "garden", "tags": ["dog"]}}}
PEAKS = {
    "id": CLIP["id"],
    "duration": 3.2,
    "n": 4,
    "peaks": [[-0.02, 0.02], [-0.71, 0.69], [-0.55, 0.6], [-0.01, 0.01]],
}
LOUDNESS = {"id": CLIP["id"], "integrated": -19.4, "peak": -2.9}

CONCEPT = {
    "id": "5f0d6c1e9a7b4c2d8e3f1a0b9c8d7e6f",
    "name": "our door bell",
    "text": "a door bell",
    "positives": 6,
    "negatives": 2,
    "removed": 0,
    "quality": {"average_precision": 0.91, "auroc": 0.99, "folds": 6},
    "threshold": 0.5,
    "threshold_set": False,
    "notes": [],
    "created": "2026-03-01T08:30:00.000000Z",
    "updated": "2026-03-01T08:41:00.000000Z",
}
NEW_CONCEPTS: dict[str, dict[str, Any]] = {
    "text": {"name": "our door bell", "text": "a door bell"},
    "examples": {
        "name": "our door bell",
        "examples": [
            {"clip_id": CLIP["id"], "start": 1.1, "end": 2.1},
            {"clip_id": "0d6e3a5b9c1f4d27a8e4b7c2f9a01d35", "label": False},
        ],
    },
}
CONCEPT_EXAMPLE = {
    "id": "7c1d0e5f2a9b4d3c8e6f5a4b3c2d1e0f",
    "label": True,
    "clip_id": CLIP["id"],
    "filename": CLIP["filename"],
    "start": 1.1,
    "end": 2.1,
    "created": "2026-03-01T08:41:00.000000Z",
}
CONCEPT_EXAMPLES = {"examples": [CONCEPT_EXAMPLE]}
TAUGHT_EXAMPLES = CONCEPT_EXAMPLES | {"concept": CONCEPT, "errors": [], "skipped": 0}
NEW_EXAMPLES = {"more": {"examples": NEW_CONCEPTS["examples"]["examples"]}}
SUGGESTIONS = {"suggestions": [{"clip": CLIP, "start": 1.12, "end": 2.08, "score": 0.48}]}

SEARCHES = {
    "words": {"query": "dog barking", "k": 5},
    "filter": {"query": "rain", "filter": {"tags": ["field", "garden"]}, "min_score": 0.2},
    "without": {"query": "dog barking", "without": ["howling"], "moments": True},
    "like": {"query": "dog barking", "like": [{"clip_id": CLIP["id"], "start": 1.1, "end": 2.1}]},
}
FOUND = {
    "query": "dog barking",
    "took_ms": 4.1,
    "matches": 3,
    "did_you_mean": None,
    "track": None,
    "notes": [],
    "hits": [
        {
            "clip": CLIP,
            "similarity": 0.5312,
            "score": 0.8271,
            "match": True,
            "reasons": [{"kind": "name", "words": ["dog"]}, {"kind": "sound", "words": []}],
            "moments": [MOMENT],
        }
    ],
}
MOMENT_SEARCHES = {
    "one sound": {"query": "glass breaking", "k": 5},
    "one after another": {"sequence": ["dog barking", "door closing"], "max_gap": 3},
}
MOMENTS = {
    "query": ["dog barking", "door closing"],
    "took_ms": 21.7,
    "candidates": 102,
    "hits": [
        {
            "clip": CLIP,
            "start": 1.12,
            "end": 3.04,
            "score": 0.871,
            "parts": [MOMENT, {"start": 2.4, "end": 3.04, "score": 0.871}],
        }
    ],
}

TEXTS = {"texts": {"texts": ["dog barking", "rain"]}}
EMBEDDINGS = {
    "model": "finelap-small",
    "dim": 512,
    "audio": [
        {
            "filename": "dog.wav",
            "duration": 3.2,
            "track": None,
            "notes": [],
            "embedding": _VECTOR,
            "frames": {"hop": 0.16, "embeddings": [_VECTOR, _VECTOR]},
        }
    ],
    "texts": [{"text": "dog barking", "embedding": _VECTOR}],
    "errors": [],
}
OPENAI_REQUESTS = {
    "texts": {"model": "finelap-small", "input": ["dog barking", "rain"]},
    "audio": {"modality": "audio", "input": "data:audio/wav;base64,UklGRg==", "encoding_format": "base64"},
}
OPENAI_EMBEDDINGS = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": _VECTOR}],
    "model": "finelap-small",
    "usage": {"prompt_tokens": 4, "total_tokens": 4},
}
OPENAI_MODELS: dict[str, Any] = {
    "object": "list",
    "data": [{"id": "finelap-small", "object": "model", "created": 0, "owned_by": "finelap"}],
}

DETECTION = {
    "filename": "dog.wav",
    "duration": 3.2,
    "frame_hop": 0.16,
    "sample_rate": 44_100,
    "track": {"index": 1, "language": "deu", "title": "Hörfassung"},
    "notes": [
        {"code": "channels-cancel", "detail": "channels cancel in their mean for 3.2 s and were mixed otherwise"}
    ],
    "phrases": [
        {
            "phrase": "dog barking",
            "clip_score": 0.8271,
            "max_score": 0.951,
            "events": [{"onset": 1.12, "offset": 2.08, "score": 0.934}],
            "frame_scores": [0.012, 0.934, 0.951],
        }
    ],
}
DETECTION_CSV = "filename,phrase,onset,offset,score\ndog.wav,dog barking,1.120,2.080,0.9340\n"
DETECTION_LABELS = "1.120\t2.080\tdog barking\n"
DETECTION_LINES = (
    '{"type": "start", "filename": "dog.wav", "frame_hop": 0.16, "sample_rate": 44100, "channels": 1, "track": null, '
    '"phrases": ["dog barking"], "outline": {"step": 0.1, "frequencies": [57.6, 97.1]}}\n'
    '{"type": "frames", "first": 0, "scores": [[0.012, 0.934, 0.951]]}\n'
    '{"type": "outline", "first": 0, "columns": 2, "peaks": "GPzoA+X6GwU=", "spectrum": "HjI="}\n'
    '{"type": "event", "phrase": "dog barking", "onset": 1.12, "offset": 2.08, "score": 0.934}\n'
    '{"type": "end", "filename": "dog.wav", "duration": 3.2, "frame_hop": 0.16, "sample_rate": 44100, "track": null, '
    '"notes": [], "phrases": [{"phrase": "dog barking", "clip_score": 0.8271, "max_score": 0.951, '
    '"events": [{"onset": 1.12, "offset": 2.08, "score": 0.934}]}]}\n'
)
JOB_REQUESTS = {
    "all clips": {"kind": "detect", "phrases": ["dog barking", "rain"]},
    "some clips": {"kind": "detect", "phrases": ["dog barking"], "filter": {"site": "north"}, "threshold": 0.4},
}
JOB = {
    "id": "0c4cde0e4f4b4b7c9f3f4b6c0f6e2a11",
    "kind": "detect",
    "state": "running",
    "done": 4200,
    "total": 10000,
    "events": 512,
    "reused": 0,
    "seconds": 42_000.0,
    "error": None,
    "created": "2026-11-29T10:00:00.000Z",
    "started": "2026-11-29T10:00:00.100Z",
    "ended": None,
    "phrases": ["dog barking", "rain"],
    "filter": None,
    "threshold": [0.5, 0.5],
    "low_threshold": [None, None],
    "method": "threshold",
    "median_filter": 0.48,
    "min_duration": 0.0,
    "max_gap": 0.2,
    "checkpoint": "finelap-small-0f3c",
}
JOBS = {"jobs": [JOB]}
JOB_CSV = (
    "filename,onset,offset,event_label,score,clip_id,time\n"
    "20240131_054500.WAV,1.120,2.080,dog barking,0.9340,3f9a,2024-01-31T05:45:01.120\n"
)
JOB_LINES = (
    '{"clip_id": "3f9a", "filename": "20240131_054500.WAV", "phrase": "dog barking", "onset": 1.12, "offset": 2.08, '
    '"score": 0.934, "time": "2024-01-31T05:45:01.120"}\n'
)
JOB_SUMMARY = {
    "by": "hour",
    "phrases": ["dog barking", "rain"],
    "undated": 2,
    "hours": [{"hour": "2024-01-31T05:00", "seconds": 900.0, "events": [3, 0], "durations": [2.88, 0.0]}],
}
CLASSIFICATION = {"labels": [{"label": "dog", "score": 0.83, "probability": 0.97}], "track": None, "notes": []}
HEALTH = {"status": "ok"}
INFO = {
    "version": "0.1.0",
    "model": {
        "name": "finelap-small",
        "stamp": "finelap-small-0f3c",
        "dim": 512,
        "frame_hop": 0.16,
        "device": "cpu",
        "dtype": "float32",
        "match_cutoff": 0.4,
        "family": "finelap",
        "sample_rate": 16_000,
        "window": 10.24,
        "frames": "native",
        "calibrated": True,
        "licence": "apache-2.0",
    },
    "clips": 102,
    "limits": {
        "max_upload_mb": 512,
        "max_duration_s": 14_400,
        "min_duration_s": 0.05,
        "max_phrases": 100,
        "max_texts": 1000,
        "max_text_length": 1000,
    },
}
