"""A clip as a row in Milvus, and the collection that such rows make.

Knows the schema, and how a clip is written and read back; makes no call that changes a row. The checkpoint that made
a collection is the default value of a field of its schema: it comes into being with the collection, in one step, and
every row carries it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from index import new_clip as preparing
from index.milvus.filters import MAX_BYTES, filterable, hexadecimal
from index.milvus.words import body
from index.records import Clip, InvalidMetadata, NewClip

RECORD = ["record"]  # the fields that a Clip is read from
SORTED_BY = {"created": "arrived", "filename": "name", "duration": "duration"}

_LONGEST_NAME = 4096  # bytes of a file's name
_HNSW = {"M": 16, "efConstruction": 200}


@dataclass(frozen=True)
class Prepared:
    """A new clip, checked and encoded."""

    clip: Clip
    row: dict[str, Any]
    frames: bytes
    segments: list[dict[str, Any]]  # rows of the collection of segments
    audio: Any  # as in NewClip


def prepare(new: NewClip, dim: int, arrived: int) -> Prepared:
    """A new clip as a row that arrives at a time in microseconds since 1970.

    Raises InvalidMetadata, also for metadata that is larger than Milvus' fields; ValueError for vectors of another
    shape or length.
    """
    created = datetime.fromtimestamp(arrived // 1_000_000, UTC).replace(microsecond=arrived % 1_000_000)
    ready = preparing.prepare(new, dim, created)
    clip, segments = ready.clip, ready.segments.decode()
    row = {
        "id": clip.id,
        "sha256": clip.sha256,
        "arrived": arrived,
        "created": hexadecimal(clip.created),
        "name": hexadecimal(clip.filename),
        "duration": clip.duration,
        "sample_rate": float(clip.sample_rate),
        "channels": float(clip.channels),
        "hop": ready.frame_hop,
        "segments": len(segments),
        "vector": ready.embedding.tolist(),
        **describe(clip),
    }
    if len(row["name"]) > 2 * _LONGEST_NAME:
        raise InvalidMetadata(f"a file name in Milvus has at most {_LONGEST_NAME} bytes")
    parts = zip(segment_ids(clip.id, len(segments)), segments.tolist(), strict=True)
    stretches = [{"id": part, "clip": clip.id, "vector": vector} for part, vector in parts]
    return Prepared(clip, row, ready.codes, stretches, new.audio)


def segment_ids(clip_id: str, count: int) -> list[str]:
    """The ids of a clip's segments."""
    return [f"{clip_id}{number:08x}" for number in range(count)]


def describe(clip: Clip) -> dict[str, Any]:
    """The fields of a row that its metadata decides. Raises InvalidMetadata when it is too large for them."""
    facts, spans = filterable(clip.metadata)
    values = [clip.id, clip.filename, clip.sha256, clip.duration, clip.sample_rate, clip.channels, clip.created]
    record = json.dumps([*values, clip.metadata], ensure_ascii=False)
    if len(record.encode()) > MAX_BYTES:
        raise InvalidMetadata(f"a clip's record in Milvus has at most {MAX_BYTES} bytes, and this has more")
    return {"record": record, "facts": facts, "spans": spans, "words": body(clip.filename, clip.metadata)}


def read_clip(row: dict[str, Any]) -> Clip:
    """The clip of a row that has the fields RECORD."""
    return Clip(*json.loads(row["record"]))


def read_vector(row: dict[str, Any]) -> np.ndarray:
    """The vector (D,) of a row that has it."""
    return np.array(row["vector"], dtype=np.float32)


def audio_object(clip: Clip) -> str:
    """The name of the object that is the clip's uploaded file. It is the clip's alone."""
    return f"audio/{clip.sha256}.{clip.id}"


def frames_object(clip: Clip) -> str:
    """The name of the object that has the clip's frame embeddings, as FrameCodes.to_bytes makes them."""
    return f"frames/{clip.sha256}.{clip.id}"


# The collections


def schema(client: Any, dim: int, checkpoint: str) -> Any:
    """The schema of a library that belongs to a checkpoint."""
    from pymilvus import DataType, Function, FunctionType

    made = client.create_schema(auto_id=False, enable_dynamic_field=False)
    made.add_field("id", DataType.VARCHAR, is_primary=True, max_length=32)
    made.add_field("checkpoint", DataType.VARCHAR, max_length=4096, default_value=checkpoint)
    made.add_field("sha256", DataType.VARCHAR, max_length=64)
    made.add_field("arrived", DataType.INT64)  # microseconds since 1970
    made.add_field("created", DataType.VARCHAR, max_length=64)
    made.add_field("name", DataType.VARCHAR, max_length=2 * _LONGEST_NAME)
    for number in ("duration", "sample_rate", "channels", "hop"):
        made.add_field(number, DataType.DOUBLE)
    made.add_field("segments", DataType.INT64)  # how many there are in the other collection
    made.add_field("record", DataType.VARCHAR, max_length=MAX_BYTES)
    made.add_field("facts", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4096, max_length=32)
    made.add_field("spans", DataType.JSON)
    made.add_field("words", DataType.VARCHAR, max_length=MAX_BYTES, enable_analyzer=True)
    made.add_field("terms", DataType.SPARSE_FLOAT_VECTOR)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    made.add_function(
        Function(
            name="count_terms",
            function_type=FunctionType.BM25,
            input_field_names=["words"],
            output_field_names=["terms"],
        )
    )
    return made


def segment_schema(client: Any, dim: int) -> Any:
    """The schema of the segments of a library's clips (index.segments)."""
    from pymilvus import DataType

    made = client.create_schema(auto_id=False, enable_dynamic_field=False)
    made.add_field("id", DataType.VARCHAR, is_primary=True, max_length=40)
    made.add_field("clip", DataType.VARCHAR, max_length=32)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    return made


def indexes(client: Any, kind: str, segments: bool = False) -> dict[str, Any]:
    """The index of each field that has one; `kind` is the one of the vectors."""
    wanted: dict[str, dict[str, Any]] = {
        "vector": {"index_type": kind, "metric_type": "IP", "params": _HNSW if kind == "HNSW" else {}}
    }
    if segments:
        wanted["clip"] = {"index_type": "INVERTED"}
    else:
        wanted["terms"] = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "BM25", "params": {}}
        wanted["sha256"] = {"index_type": "INVERTED"}
        if "lite" not in client.get_server_version():  # which has no index of arrays
            wanted["facts"] = {"index_type": "INVERTED"}
    made = {}
    for field, options in wanted.items():
        made[field] = client.prepare_index_params()
        made[field].add_index(field, **options)
    return made


def stamp(description: dict[str, Any]) -> tuple[str, int] | None:
    """(checkpoint, dim) of a collection that `describe_collection` describes; None when it is not a library."""
    fields = {field["name"]: field for field in description["fields"]}
    if not {"checkpoint", "record", "vector", "facts", "spans", "terms", "segments"} <= fields.keys():
        return None
    default = fields["checkpoint"].get("default_value")
    return getattr(default, "string_data", default), int(fields["vector"]["params"]["dim"])
