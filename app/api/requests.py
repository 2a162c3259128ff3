"""Reading requests: the `Serving` dependency, and JSON and form bodies, bounded in size and with every fault named.

Routes read their bodies here and not through FastAPI's `Form()` models: FastAPI parses the whole form first, with
limits of its own that cannot be set, and has none on the sum of all fields or on what files keep in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import re
import typing
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from app.errors import BodyTooLarge, Invalid, Malformed, UnsupportedType
from app.services.audio_source import AudioFile
from app.state import AppState
from index import StorageFull

M = TypeVar("M", bound=BaseModel)

FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_JSON_BYTES = 8 << 20
MAX_JSON_VALUES = 1_000_000  # approximately: a few bytes of text can take a hundred bytes of memory
MAX_FILES = 1000  # per form
MAX_FIELDS = 10_000  # per form
MAX_FIELD_BYTES = 1 << 20
MAX_FIELDS_BYTES = 16 << 20  # of all fields of a form together

_FILE_FIELDS = ("file", "files", "audio")  # what callers name the field for audio
_CURL_FILE = "With curl: -F {}=@sound.wav"
_LARGE_JSON = 1 << 20  # bytes from which JSON is parsed on a thread
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_FILENAME = 255  # characters
# these change the order in which the rest of a line is displayed, so a name can pose as another
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_EXTENDED_NAME = re.compile(rb"""filename\*\s*=\s*"?([A-Za-z0-9._-]+)'[^']*'([^\s;"]*)""", re.IGNORECASE)
_ENCODED_NAME = re.compile(rb'filename\s*=\s*"?((?:=\?[^?\s]+\?[BbQq]\?[^?\s]*\?=\s*)+)"?\s*(?:;|$)', re.IGNORECASE)
_FIELD_NAME = re.compile(rb'\bname\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s;]+)', re.IGNORECASE)
_SPOOL_BYTES = 1 << 20  # of a file that stay in memory
_SPOOLED_FILES = 16  # files of a form that may use _SPOOL_BYTES; further ones use less
_SPOOL_BYTES_FURTHER = 1 << 16


async def _open_state(request: Request) -> AsyncIterator[AppState]:
    state: AppState = request.app.state.service
    async with state.request():
        yield state


Serving = Annotated[AppState, Depends(_open_state)]  # the state for one request; raises Closed during shutdown


@dataclass(frozen=True)
class Form(typing.Generic[M]):
    """A form's files, in order, and its other fields. `named`: the files with the names of their fields."""

    files: list[AudioFile]
    fields: M
    named: list[tuple[str, AudioFile]] = dataclasses.field(default_factory=list)


def clean_filename(name: str | None) -> str:
    """A name to display and store: no folders, no control characters, NFC, at most 255 characters, in any script."""
    base = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    clean = "".join(c for c in base if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c not in _BIDI)
    clean = unicodedata.normalize("NFC", clean).strip()
    if clean.strip(".") == "":
        return "unnamed"
    if len(clean) > _MAX_FILENAME:
        stem, dot, suffix = clean.rpartition(".")
        if dot and len(suffix) < 10:
            return f"{stem[: _MAX_FILENAME - len(suffix) - 1]}.{suffix}"
        return clean[:_MAX_FILENAME].rstrip()
    return clean


def file_name(disposition: bytes) -> str | None:
    """The file name of a Content-Disposition that encodes it; None if it is plain or missing.

    `filename*` (RFC 8187) is preferred, as RFC 6266 says; RFC 7578 forbids it in forms, and .NET sends it, with
    `filename` as an encoded word (RFC 2047), which mail programs and others send alone.
    """
    if found := _EXTENDED_NAME.search(disposition):
        charset = found[1].decode("ascii").lower()
        with contextlib.suppress(LookupError, UnicodeDecodeError):
            return unquote_to_bytes(found[2]).decode(charset)
    if found := _ENCODED_NAME.search(disposition):
        with contextlib.suppress(LookupError, UnicodeDecodeError, ValueError, HeaderParseError):
            return str(make_header(decode_header(found[1].decode("ascii"))))
    return None


def media_type_of(request: Request) -> str:
    """The request's media type in lower case, without parameters; empty if there is none."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


# JSON


def parse_json(text: str | bytes, what: str) -> Any:
    """Parses JSON as RFC 8259 defines it: no NaN, only valid Unicode. Raises Malformed, BodyTooLarge."""
    if len(text) > MAX_JSON_VALUES and _count_separators(text) > MAX_JSON_VALUES:
        raise BodyTooLarge(f"{what} has more than {MAX_JSON_VALUES} values.")
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        else:
            text.encode("utf-8")  # fails for a lone surrogate
        value = json.loads(text, parse_constant=_reject_constant)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # the parser accepts an escaped lone surrogate
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not valid JSON: {error}") from error
    return value


async def read_json(request: Request, model: type[M], limit: int = MAX_JSON_BYTES) -> M:
    """The JSON body as `model`, of at most `limit` bytes. Raises Malformed, UnsupportedType, BodyTooLarge, Invalid."""
    media_type = media_type_of(request)
    if media_type and media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedType(f"The body must be application/json, not {media_type}.")
    data = await _read_body(request, limit)
    if len(data) > _LARGE_JSON:
        value = await asyncio.to_thread(parse_json, data, "the body")
    else:
        value = parse_json(data, "the body")
    if not isinstance(value, dict):
        raise Invalid(f"The body must be a JSON object, not {_json_type(value)}.")
    return validate(model, value)


# Forms


@contextlib.asynccontextmanager
async def open_form(
    request: Request, model: type[M], *, files: str | tuple[str, ...], json_fields: tuple[str, ...] = ()
) -> AsyncIterator[Form[M]]:
    """A multipart or URL-encoded body: the files of the field or fields `files`, and all other fields as `model`.

    `json_fields` contain JSON. The files are deleted on exit. Raises Malformed, UnsupportedType, BodyTooLarge,
    Invalid, StorageFull.
    """
    media_type = media_type_of(request)
    if media_type not in FORM_TYPES:
        raise UnsupportedType(
            f"The body must be multipart/form-data, not {media_type or 'a body without a media type'}."
        )
    form = await parse_form(request)
    try:
        uploads: list[tuple[str, AudioFile]] = []
        of_files = (files,) if isinstance(files, str) else files
        values: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name in of_files:
                if not isinstance(value, UploadFile):
                    raise Invalid(f"The field {name!r} must be a file with a file name. {_CURL_FILE.format(name)}")
                uploads.append((name, AudioFile(clean_filename(value.filename), value.file)))
                continue
            if name not in model.model_fields and (isinstance(value, UploadFile) or name in _FILE_FIELDS):
                about = " or ".join(repr(one) for one in of_files)
                raise Invalid(
                    f"The field for audio is {about}, not {name!r}. {_CURL_FILE.format(of_files[0])}",
                    errors=[{"field": name, "message": f"The field for audio is {about}."}],
                )
            if isinstance(value, UploadFile):
                value = await _read_text(name, value)
            if name not in json_fields and _takes_list(model, name):
                values.setdefault(name, []).append(value)
            elif name in values:
                raise Invalid(f"The field {name!r} must not be repeated.")
            else:
                values[name] = parse_json(value, f"the field {name!r}") if name in json_fields else value
        fields = validate(model, values)
        track = getattr(fields, "track", None)
        uploads = [(name, dataclasses.replace(upload, track=track)) for name, upload in uploads]
        yield Form([file for _, file in uploads], fields, uploads)
    finally:
        await form.close()


async def parse_form(request: Request) -> FormData:
    """The form in the request's body; closing it deletes its files. Raises Malformed, BodyTooLarge, StorageFull.

    Starlette's parser bounds single fields and the numbers of fields and files, python-multipart the headers of a part
    (8, of 4 KiB each). Added here: a bound on all fields together, and on the files' share of memory.
    """
    multipart = request.headers.get("content-type", "").lower().startswith("multipart/")
    try:
        async with aclosing(request.stream()) as stream:
            if multipart:
                parser = _BoundedMultiPartParser(request.headers, stream, max_files=MAX_FILES, max_fields=MAX_FIELDS)
                return await parser.parse()
            bounded = _bound(stream)
            return await FormParser(
                request.headers, bounded, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
            ).parse()
    except MultiPartException as error:
        raise Malformed(error.message) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("no room left for uploads in the folder of temporary files (TMPDIR)") from error
        raise


class _BoundedMultiPartParser(MultiPartParser):
    max_part_size = MAX_FIELD_BYTES
    _field_bytes = 0

    def on_headers_finished(self) -> None:
        name = file_name(self._current_part.content_disposition or b"")
        if name is not None:
            # as the parser takes names: in quotes, of which those in the name are escaped
            field = _FIELD_NAME.search(self._current_part.content_disposition or b"")
            plain = name.replace("\\", "/").replace('"', "''").encode("utf-8", "replace")
            self._current_part.content_disposition = (
                b"form-data; " + (field[0] if field else b'name=""') + b'; filename="' + plain + b'"'
            )
        self.spool_max_size = _SPOOL_BYTES if self._current_files < _SPOOLED_FILES else _SPOOL_BYTES_FURTHER
        super().on_headers_finished()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._field_bytes += end - start
            if self._field_bytes > MAX_FIELDS_BYTES:
                raise _fields_too_large()
        super().on_part_data(data, start, end)


async def _bound(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in stream:
        received += len(chunk)
        if received > MAX_FIELDS_BYTES:
            raise _fields_too_large()
        yield chunk


def _fields_too_large() -> BodyTooLarge:
    return BodyTooLarge(f"The fields of the form are larger than the limit of {MAX_FIELDS_BYTES} bytes in total.")


# Validation


def validate(model: type[M], value: Any) -> M:
    """`value` as `model`, or Invalid with every fault in `errors`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise_invalid([dict(fault) for fault in error.errors(include_url=False, include_input=False)])


def raise_invalid(faults: list[Any]) -> NoReturn:
    """Raises Invalid for faults in pydantic's form: `loc` and `msg`."""
    errors = [{"field": ".".join(str(part) for part in fault["loc"]), "message": fault["msg"]} for fault in faults]
    detail = "; ".join(f"{e['field']}: {e['message']}" if e["field"] else e["message"] for e in errors[:5])
    raise Invalid(detail + (f"; and {len(errors) - 5} more" if len(errors) > 5 else ""), errors=errors[:100])


def _count_separators(text: str | bytes) -> int:
    """An upper bound of the number of values in the JSON; base64 contains none of these characters."""
    if isinstance(text, bytes):
        return sum(text.count(mark) for mark in (b",", b"[", b"{"))
    return sum(text.count(mark) for mark in (",", "[", "{"))


async def _read_body(request: Request, limit: int) -> bytes:
    chunks, received = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        received += len(chunk)
        if received > limit:
            raise BodyTooLarge(f"The JSON body is larger than the limit of {limit / 1e6:g} MB.")
    return b"".join(chunks)


async def _read_text(name: str, file: UploadFile) -> str:
    data = await file.read(MAX_FIELD_BYTES + 1)
    if len(data) > MAX_FIELD_BYTES:
        raise Invalid(f"The field {name!r} is longer than {MAX_FIELD_BYTES} bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"The field {name!r} is not UTF-8.") from error


def _takes_list(model: type[BaseModel], name: str) -> bool:
    field = model.model_fields.get(name)
    return field is not None and typing.get_origin(field.annotation) is list


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _json_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
