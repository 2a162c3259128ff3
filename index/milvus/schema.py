"""The schema of a library's collections in Milvus, and conversion between clips and rows.

The checkpoint of a library is the default value of a field of its schema, so that it is created atomically with the
collection and every row has it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from index.milvus.filters import MAX_BYTES, filterable, hexadecimal, indexed_text
from index.new_clip import encode_clip
from index.records import Clip, InvalidMetadata, NewClip

RECORD = ["record"]  # the fields that a Clip is read from
SORT_FIELDS = {"created": "arrived", "filename": "name", "duration": "duration"}

_MAX_NAME = 4096  # bytes of a file name
_HNSW = {"M": 16, "efConstruction": 200}


@dataclass(frozen=True)
class NewRows:
    """A new clip as the rows and objects that are written for it."""

    clip: Clip
    row: dict[str, Any]
    frames: bytes
    segments: list[dict[str, Any]]  # rows of the segment collection
    audio: Any  # as in NewClip


def to_rows(new: NewClip, dim: int, arrived: int) -> NewRows:
    """Converts a new clip. `arrived`: microseconds since 1970.

    Raises InvalidMetadata, also for metadata that exceeds Milvus' limits, and ValueError for vectors of the wrong shape
    or length.
    """
    created = datetime.fromtimestamp(arrived // 1_000_000, UTC).replace(microsecond=arrived % 1_000_000)
    encoded = encode_clip(new, dim, created)
    clip, segments = encoded.clip, encoded.segments.decode()
    row = {
        "id": clip.id,
        "sha256": clip.sha256,
        "arrived": arrived,
        "created": hexadecimal(clip.created),
        "duration": clip.duration,
        "sample_rate": float(clip.sample_rate),
        "channels": float(clip.channels),
        "hop": encoded.frame_hop,
        "segments": len(segments),
        "vector": encoded.embedding.tolist(),
        **record_fields(clip),
    }
    parts = zip(segment_ids(clip.id, len(segments)), segments.tolist(), strict=True)
    segment_rows = [{"id": part, "clip": clip.id, "vector": vector} for part, vector in parts]
    return NewRows(clip, row, encoded.codes, segment_rows, new.audio)


def segment_ids(clip_id: str, count: int) -> list[str]:
    """Returns the ids of a clip's segments."""
    return [f"{clip_id}{number:08x}" for number in range(count)]


def record_fields(clip: Clip) -> dict[str, Any]:
    """Returns the fields of a row that an edit changes. Raises InvalidMetadata if they exceed Milvus' limits."""
    name = hexadecimal(clip.filename)
    if len(name) > 2 * _MAX_NAME:
        raise InvalidMetadata(f"file names in Milvus are limited to {_MAX_NAME} bytes")
    facts, spans = filterable(clip.metadata)
    values = [clip.id, clip.filename, clip.sha256, clip.duration, clip.sample_rate, clip.channels, clip.created]
    record = json.dumps([*values, clip.metadata], ensure_ascii=False)
    if len(record.encode()) > MAX_BYTES:
        raise InvalidMetadata(f"a clip's record exceeds the {MAX_BYTES} bytes that Milvus allows")
    words = indexed_text(clip.filename, clip.metadata)
    return {"name": name, "record": record, "facts": facts, "spans": spans, "words": words}


def read_clip(row: dict[str, Any]) -> Clip:
    """Returns the clip of a row that has the fields RECORD."""
    return Clip(*json.loads(row["record"]))


def read_vector(row: dict[str, Any]) -> np.ndarray:
    """Returns the vector (D,) float32 of a row that has the field."""
    return np.array(row["vector"], dtype=np.float32)


def audio_object(clip: Clip) -> str:
    """Returns the name of the object with the clip's uploaded file. No other clip shares it."""
    return f"audio/{clip.sha256}.{clip.id}"


def frames_object(clip: Clip) -> str:
    """Returns the name of the object with the clip's frames, FrameCodes.to_bytes."""
    return f"frames/{clip.sha256}.{clip.id}"


# Collections


def clip_schema(client: Any, dim: int, checkpoint: str) -> Any:
    """Returns the schema of a checkpoint's clip collection."""
    from pymilvus import DataType, Function, FunctionType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=32)
    schema.add_field("checkpoint", DataType.VARCHAR, max_length=4096, default_value=checkpoint)
    schema.add_field("sha256", DataType.VARCHAR, max_length=64)
    schema.add_field("arrived", DataType.INT64)  # microseconds since 1970
    schema.add_field("created", DataType.VARCHAR, max_length=64)
    schema.add_field("name", DataType.VARCHAR, max_length=2 * _MAX_NAME)
    for number in ("duration", "sample_rate", "channels", "hop"):
        schema.add_field(number, DataType.DOUBLE)
    schema.add_field("segments", DataType.INT64)  # number of rows in the segment collection
    schema.add_field("record", DataType.VARCHAR, max_length=MAX_BYTES)
    schema.add_field("facts", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4096, max_length=32)
    schema.add_field("spans", DataType.JSON)
    schema.add_field("words", DataType.VARCHAR, max_length=MAX_BYTES, enable_analyzer=True)
    schema.add_field("terms", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    schema.add_function(
        Function(
            name="count_terms",
            function_type=FunctionType.BM25,
            input_field_names=["words"],
            output_field_names=["terms"],
        )
    )
    return schema


def segment_schema(client: Any, dim: int) -> Any:
    """Returns the schema of the segment collection (index.segments)."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=40)
    schema.add_field("clip", DataType.VARCHAR, max_length=32)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    return schema


def indexes(client: Any, kind: str, segments: bool = False) -> dict[str, Any]:
    """Returns the index parameters by field; `kind` is the index type of the vectors."""
    wanted: dict[str, dict[str, Any]] = {
        "vector": {"index_type": kind, "metric_type": "IP", "params": _HNSW if kind == "HNSW" else {}}
    }
    if segments:
        wanted["clip"] = {"index_type": "INVERTED"}
    else:
        wanted["terms"] = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "BM25", "params": {}}
        wanted["sha256"] = {"index_type": "INVERTED"}
        if "lite" not in client.get_server_version():  # milvus-lite cannot index arrays
            wanted["facts"] = {"index_type": "INVERTED"}
    made = {}
    for field, options in wanted.items():
        made[field] = client.prepare_index_params()
        made[field].add_index(field, **options)
    return made


def concept_schema(client: Any) -> Any:
    """Returns the schema of the collection."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=40)
    schema.add_field("kind", DataType.VARCHAR, max_length=16)
    schema.add_field("concept", DataType.VARCHAR, max_length=32)
    schema.add_field("name", DataType.VARCHAR, max_length=1024)  # of a concept, in hexadecimal
    schema.add_field("sha256", DataType.VARCHAR, max_length=64)  # of an example that came as a file
    schema.add_field("record", DataType.VARCHAR, max_length=65_535)
    schema.add_field("sound", DataType.VARCHAR, max_length=65_535)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    return schema


def concept_indexes(client: Any) -> dict[str, Any]:
    """Returns the index parameters by field."""
    wanted: dict[str, dict[str, Any]] = {
        "vector": {"index_type": "FLAT", "metric_type": "IP", "params": {}},
        "concept": {"index_type": "INVERTED"},
    }
    made = {}
    for field, options in wanted.items():
        made[field] = client.prepare_index_params()
        made[field].add_index(field, **options)
    return made


def stamp(description: dict[str, Any]) -> tuple[str, int] | None:
    """Returns (checkpoint, dim) from the result of `describe_collection`; None if it is not a library."""
    fields = {field["name"]: field for field in description["fields"]}
    if not {"checkpoint", "record", "vector", "facts", "spans", "terms", "segments"} <= fields.keys():
        return None
    default = fields["checkpoint"].get("default_value")
    return getattr(default, "string_data", default), int(fields["vector"]["params"]["dim"])
