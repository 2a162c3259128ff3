"""Reading request bodies: JSON and forms into the shapes of app.api.schemas, with every fault named.

Knows nothing of what a request is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import typing
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from app.api.forms import MAX_FIELD_BYTES, parse_form
from app.errors import BodyTooLarge, Invalid, Malformed, UnsupportedType

M = TypeVar("M", bound=BaseModel)

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_JSON = 8 << 20  # bytes of a body
MAX_VALUES = 1_000_000  # in a body, about: a few bytes of text may become a hundred of memory
_LARGE = 1 << 20  # bytes of JSON that are parsed on a thread
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_NAME = 255  # characters of a file name
# they change the order in which the rest of a line is shown, so that a name can pose as another
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, eq=False)
class Upload:
    """A file of a form; `filename` is safe to show and store."""

    filename: str
    file: UploadFile

    @property
    def binary(self) -> BinaryIO:
        """The file itself, open until the form is left."""
        return self.file.file


@dataclass(frozen=True)
class Form(typing.Generic[M]):
    """A form's files, in order, and its other fields."""

    files: list[Upload]
    fields: M


def clean_filename(name: str | None) -> str:
    """A name to show and store: no folders, no control characters, NFC, at most 255 characters; any script is kept."""
    base = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c for c in base if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c not in _BIDI)
    kept = unicodedata.normalize("NFC", kept).strip()
    if kept.strip(".") == "":
        return "unnamed"
    if len(kept) > _MAX_NAME:
        stem, dot, suffix = kept.rpartition(".")
        kept = (
            f"{stem[: _MAX_NAME - len(suffix) - 1]}.{suffix}" if dot and len(suffix) < 10 else kept[:_MAX_NAME].rstrip()
        )
    return kept


def media_type_of(request: Request) -> str:
    """The request's media type, lower case, without parameters; empty if it names none."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def parse_json(text: str | bytes, what: str) -> Any:
    """JSON as RFC 8259 has it: no NaN, nothing that is not Unicode. Raises Malformed, BodyTooLarge."""
    if len(text) > MAX_VALUES and _count_marks(text) > MAX_VALUES:
        raise BodyTooLarge(f"{what} has more than {MAX_VALUES} values.")
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        else:
            text.encode("utf-8")  # half a surrogate pair is no character
        value = json.loads(text, parse_constant=_no_constant)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # alone, it passes the parser
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not valid JSON: {error}") from error
    return value


async def read_json(request: Request, shape: type[M], limit: int = MAX_JSON) -> M:
    """The JSON body as `shape`, of at most `limit` bytes. Raises Malformed, UnsupportedType, BodyTooLarge, Invalid."""
    kind = media_type_of(request)
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedType(f"The body must be application/json; it came as {kind}.")
    data = await _read(request, limit)
    if len(data) > _LARGE:
        value = await asyncio.to_thread(parse_json, data, "the body")
    else:
        value = parse_json(data, "the body")
    if not isinstance(value, dict):
        raise Invalid(f"The body must be a JSON object, not {_json_name(value)}.")
    return validate(shape, value)


@contextlib.asynccontextmanager
async def open_form(
    request: Request, shape: type[M], *, files: str, json_fields: tuple[str, ...] = ()
) -> AsyncIterator[Form[M]]:
    """A multipart or URL-encoded body: the files of the field `files`, and all other fields as `shape`.

    `json_fields` hold JSON. Raises Malformed, UnsupportedType, Invalid; the files are gone when this ends.
    """
    kind = media_type_of(request)
    if kind not in FORMS:
        raise UnsupportedType(f"The body must be multipart/form-data; it came as {kind or 'nothing'}.")
    form = await parse_form(request)
    try:
        uploads: list[Upload] = []
        values: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name == files:
                if not isinstance(value, UploadFile):
                    raise Invalid(f"The field {name!r} must be a file, with a file name.")
                uploads.append(Upload(clean_filename(value.filename), value))
                continue
            if isinstance(value, UploadFile):  # of an unknown field the name says enough
                value = await _as_text(name, value) if name in shape.model_fields else ""
            if name not in json_fields and _takes_list(shape, name):
                values.setdefault(name, []).append(value)
            elif name in values:
                raise Invalid(f"The field {name!r} may be given once.")
            else:
                values[name] = parse_json(value, f"the field {name!r}") if name in json_fields else value
        yield Form(uploads, validate(shape, values))
    finally:
        await form.close()


def validate(shape: type[M], value: Any) -> M:
    """`value` as `shape`, or Invalid with every fault in `errors`."""
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise_invalid([dict(fault) for fault in error.errors(include_url=False, include_input=False)])


def raise_invalid(faults: list[Any]) -> NoReturn:
    """Raises Invalid for faults in pydantic's form: `loc` and `msg`."""
    errors = [{"field": ".".join(str(part) for part in fault["loc"]), "message": fault["msg"]} for fault in faults]
    detail = "; ".join(f"{e['field']}: {e['message']}" if e["field"] else e["message"] for e in errors[:5])
    raise Invalid(detail + (f"; and {len(errors) - 5} more" if len(errors) > 5 else ""), errors=errors[:100])


def _count_marks(text: str | bytes) -> int:
    """At least the number of values that the JSON has; no base64 has any of these marks."""
    if isinstance(text, bytes):
        return sum(text.count(mark) for mark in (b",", b"[", b"{"))
    return sum(text.count(mark) for mark in (",", "[", "{"))


async def _read(request: Request, limit: int) -> bytes:
    pieces, received = [], 0
    async for piece in request.stream():
        pieces.append(piece)
        received += len(piece)
        if received > limit:
            raise BodyTooLarge(f"A JSON body has at most {limit / 1e6:g} MB here.")
    return b"".join(pieces)


async def _as_text(name: str, file: UploadFile) -> str:
    data = await file.read(MAX_FIELD_BYTES + 1)
    if len(data) > MAX_FIELD_BYTES:
        raise Invalid(f"The field {name!r} is longer than {MAX_FIELD_BYTES} bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"The field {name!r} is not UTF-8.") from error


def _takes_list(shape: type[BaseModel], name: str) -> bool:
    field = shape.model_fields.get(name)
    if field is None:
        return False
    return typing.get_origin(field.annotation) is list


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _json_name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
