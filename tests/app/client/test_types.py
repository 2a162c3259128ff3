"""The client's types match the server's OpenAPI document: field names, nesting and optional values."""

from __future__ import annotations

import dataclasses
import types as builtin_types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from app.client import types

# Client type → the operation whose response it reads. Nested types are reached through the fields.
RESPONSES: dict[type, tuple[str, str, str]] = {
    types.Added: ("/clips", "post", "201"),
    types.ClipPage: ("/clips", "get", "200"),
    types.Clip: ("/clips/{clip_id}", "get", "200"),
    types.Peaks: ("/clips/{clip_id}/peaks", "get", "200"),
    types.Loudness: ("/clips/{clip_id}/loudness", "get", "200"),
    types.Embedded: ("/embed", "post", "200"),
    types.SearchResult: ("/search", "post", "200"),
    types.MomentResult: ("/search/moments", "post", "200"),
    types.Detection: ("/detect", "post", "200"),
    types.Job: ("/jobs/{job_id}", "get", "200"),
    types.Concept: ("/concepts/{key}", "get", "200"),
    types.TaughtExamples: ("/concepts/{key}/examples", "post", "201"),
    types.Info: ("/info", "get", "200"),
}
# Members that the client renames, adds or leaves out on purpose.
RENAMED = {kind: {"failed": "errors"} for kind in (types.Added, types.Embedded, types.TaughtExamples)}
ADDED = {
    types.Concept: {"failed"},
    types.Added: {"new"},
    types.AudioEmbedding: {"frame_hop"},
    types.FileError: {"reason", "status"},
}
OMITTED = {
    types.Job: {
        "kind",
        "threshold",
        "low_threshold",
        "method",
        "median_filter",
        "min_duration",
        "max_gap",
        "checkpoint",
    },
    types.Peaks: {"id", "n"},
    types.Loudness: {"id"},
    types.Embedded: {"dim", "texts"},
    types.FileError: {"problem"},
}
LABELS = ("/classify", "post", "200")

Schema = dict[str, Any]


@pytest.fixture
def document(make_app: Callable[..., FastAPI]) -> Schema:
    """The service's OpenAPI document."""
    return make_app().openapi()


def response_schema(document: Schema, path: str, method: str, status: str) -> Schema:
    return document["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"]


def resolve(document: Schema, schema: Schema) -> Schema:
    """Follows references."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def split_null(document: Schema, schema: Schema) -> tuple[Schema, bool]:
    """A schema without its null alternative, and whether it had one."""
    schema = resolve(document, schema)
    options = schema.get("anyOf", [])
    rest = [option for option in options if option.get("type") != "null"]
    if len(rest) == len(options):
        return schema, False
    return (resolve(document, rest[0]) if len(rest) == 1 else {**schema, "anyOf": rest}), True


def differences(document: Schema, kind: type, schema: Schema) -> list[str]:
    """How a client type differs from a schema, including the types that it contains."""
    schema = resolve(document, schema)
    renamed, added = RENAMED.get(kind, {}), ADDED.get(kind, set())
    hints = typing.get_type_hints(kind)
    fields = {renamed.get(f.name, f.name): hints[f.name] for f in dataclasses.fields(kind) if f.name not in added}
    members = {
        name: part for name, part in schema.get("properties", {}).items() if name not in OMITTED.get(kind, set())
    }
    if set(fields) != set(members):
        return [f"{kind.__name__} has {sorted(fields)}, the schema {sorted(members)}"]
    found = []
    for name, hint in fields.items():
        where = f"{kind.__name__}.{name}"
        inner, optional = split_none(hint)
        member, nullable = split_null(document, members[name])
        if optional != (nullable or name not in schema.get("required", members)):
            found.append(f"{where}: optional in {'the client' if optional else 'the schema'} only")
        found += value_differences(document, where, inner, member)
    return found


def split_none(hint: Any) -> tuple[Any, bool]:
    """A type without None, and whether it allowed None."""
    if not isinstance(hint, builtin_types.UnionType) or type(None) not in typing.get_args(hint):
        return hint, False
    rest = [part for part in typing.get_args(hint) if part is not type(None)]
    return typing.Union[tuple(rest)], True  # noqa: UP007  # from a list


def value_differences(document: Schema, where: str, hint: Any, schema: Schema) -> list[str]:
    plain = {str: "string", int: "integer", float: "number", bool: "boolean"}
    if dataclasses.is_dataclass(hint):
        return differences(document, typing.cast(type, hint), schema)
    if typing.get_origin(hint) is tuple:
        if schema.get("type") != "array":
            return [f"{where}: a tuple for {schema}"]
        return value_differences(document, where, typing.get_args(hint)[0], resolve(document, schema["items"]))
    if hint in plain:
        return [] if schema.get("type") == plain[hint] else [f"{where}: {hint.__name__} for {schema}"]
    if hint is np.ndarray:
        kinds = {resolve(document, option).get("type") for option in schema.get("anyOf", [schema])}
        is_numeric = kinds <= {"array", "string"} or "embeddings" in schema.get("properties", {})
        return [] if is_numeric else [f"{where}: an array for {schema}"]
    if typing.get_origin(hint) is dict:
        return [] if schema.get("type") == "object" else [f"{where}: a dict for {schema}"]
    options = schema.get("anyOf", [])
    parts = typing.get_args(hint)
    matched = len(options) == len(parts) and not any(
        value_differences(document, where, part, resolve(document, option))
        for part, option in zip(parts, options, strict=True)
    )
    return [] if matched else [f"{where}: {hint} for {schema}"]


@pytest.mark.parametrize("kind", RESPONSES, ids=lambda kind: kind.__name__)
def test_types_match_the_openapi_document(document: Schema, kind: type) -> None:
    assert differences(document, kind, response_schema(document, *RESPONSES[kind])) == []


def test_labels_match_the_openapi_document(document: Schema) -> None:
    schema = resolve(document, response_schema(document, *LABELS))
    assert set(schema["properties"]) == {"labels", "track", "notes"}
    assert differences(document, types.Label, schema["properties"]["labels"]["items"]) == []


def test_every_response_type_is_compared() -> None:
    """A new type is reached from RESPONSES, or is a message of a stream, which has no schema."""
    reached: set[Any] = {types.Label}

    def visit(kind: Any) -> None:
        if dataclasses.is_dataclass(kind) and kind not in reached:
            reached.add(kind)
            for hint in typing.get_type_hints(kind).values():
                visit(hint)
        for part in typing.get_args(kind):
            visit(part)

    for kind in RESPONSES:
        visit(kind)
    streamed = set(typing.get_args(types.DetectionMessage)) | set(typing.get_args(types.LiveMessage))
    declared = {kind for kind in vars(types).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}
    assert declared == reached | streamed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda hit: hit["properties"].pop("score"), "Hit has"),
        (lambda hit: hit["properties"].update(similarity={"type": "string"}), "Hit.similarity"),
        (lambda hit: hit["properties"].update(moments={"type": "array", "items": {}}), "Hit.moments: optional"),
        (lambda hit: hit["properties"].update(clip={"type": "object", "properties": {}}), "Clip has"),
    ],
)
def test_differences_are_found(document: Schema, change: Callable[[Schema], object], says: str) -> None:
    schema = response_schema(document, *RESPONSES[types.SearchResult])
    hit = resolve(document, resolve(document, schema)["properties"]["hits"]["items"])
    hit["required"] = list(hit["properties"])
    change(hit)
    assert any(says in line for line in differences(document, types.SearchResult, schema))
