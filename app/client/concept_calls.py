"""The API calls of concepts, as app.client.calls has the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypedDict
from urllib.parse import quote

from app.client import types
from app.client.calls import Audio, Call, Example, as_list, examples_as_json, read_json


class Examples(TypedDict, total=False):
    """Examples of what a concept is (positive) or isn't (negative): of the library, or files."""

    positive: Example | Sequence[Example]
    negative: Example | Sequence[Example]
    positive_files: Audio | Sequence[Audio]
    negative_files: Audio | Sequence[Audio]


def create(name: str, text: str | None, examples: Examples) -> Call[types.Concept]:
    """POST /concepts."""
    fields = {"name": name} | ({} if text is None else {"text": text})
    return _with_examples("/concepts", fields, examples, types.Concept.from_json)


def list_all() -> Call[tuple[types.Concept, ...]]:
    """GET /concepts."""
    return Call("GET", "/concepts", read_json(lambda j: tuple(types.Concept.from_json(one) for one in j["concepts"])))


def get(key: str) -> Call[types.Concept]:
    """GET /concepts/{key}."""
    return Call("GET", _path(key), read_json(types.Concept.from_json))


def update(key: str, changes: dict[str, str | float | None]) -> Call[types.Concept]:
    """PATCH /concepts/{key}."""
    return Call("PATCH", _path(key), read_json(types.Concept.from_json), json=changes)


def delete(key: str) -> Call[None]:
    """DELETE /concepts/{key}."""
    return Call("DELETE", _path(key), lambda response: None)


def examples(key: str) -> Call[tuple[types.ConceptExample, ...]]:
    """GET /concepts/{key}/examples."""
    read = read_json(lambda j: tuple(types.ConceptExample.from_json(one) for one in j["examples"]))
    return Call("GET", _path(key, "/examples"), read)


def add_examples(key: str, given: Examples) -> Call[types.TaughtExamples]:
    """POST /concepts/{key}/examples."""
    return _with_examples(_path(key, "/examples"), {}, given, types.TaughtExamples.from_json)


def delete_example(key: str, example_id: str) -> Call[None]:
    """DELETE /concepts/{key}/examples/{id}."""
    return Call("DELETE", _path(key, f"/examples/{quote(example_id, safe='')}"), lambda response: None)


def import_labels(
    key: str, file: Audio, format: str, clip_id: str | None, label: str | None
) -> Call[types.TaughtExamples]:
    """POST /concepts/{key}/examples with a label file."""
    form: dict[str, str | list[str]] = {"format": format}
    form |= {name: value for name, value in (("clip_id", clip_id), ("label", label)) if value is not None}
    read = read_json(types.TaughtExamples.from_json)
    return Call("POST", _path(key, "/examples"), read, form=form, files=[("file", file)])


def export_labels(key: str, format: str, clip_id: str | None) -> Call[str]:
    """GET /concepts/{key}/examples as a label file."""
    params = {"format": format} | ({} if clip_id is None else {"clip_id": clip_id})
    return Call("GET", _path(key, "/examples"), lambda response: response.content.decode("utf-8"), params)


def suggestions(key: str, k: int | None) -> Call[tuple[types.MomentHit, ...]]:
    """GET /concepts/{key}/suggestions."""
    read = read_json(lambda j: tuple(types.MomentHit.from_json(one) for one in j["suggestions"]))
    return Call("GET", _path(key, "/suggestions"), read, {} if k is None else {"k": str(k)})


def _with_examples(path: str, fields: dict[str, str], given: Examples, read: Any) -> Call[Any]:
    """A form with files, or JSON without."""
    of_library = [
        one | {"label": label}
        for name, label in (("positive", True), ("negative", False))
        for one in examples_as_json(given.get(name, []))  # type: ignore[arg-type]
    ]
    files = [
        (name, file)
        for name in ("positive", "negative")
        for file in as_list(given.get(f"{name}_files", []))  # type: ignore[arg-type]
    ]
    if not files:
        return Call("POST", path, read_json(read), json=fields | ({"examples": of_library} if of_library else {}))
    form: dict[str, str | list[str]] = dict(fields)
    if of_library:
        form["examples"] = json.dumps(of_library, ensure_ascii=False)
    return Call("POST", path, read_json(read), form=form, files=files)


def _path(key: str, rest: str = "") -> str:
    return f"/concepts/{quote(key, safe='')}{rest}"
