"""Excerpts and previews of clips, and several sounds as one archive."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator
from typing import Literal
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from app.api import openapi, requests
from app.api.requests import Serving
from app.api.responses import ClosingStreamingResponse
from app.errors import RangeNotSatisfiable
from app.services.excerpts import MAX_PAD, Cut, Excerpt, Item, Range, open_excerpt, open_preview, write_archive
from app.state import AppState

router = APIRouter(prefix="/clips", tags=["library"])

MAX_ITEMS = 1000  # of an archive
MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg"}
_RANGE = re.compile(r"bytes=\s*(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))\s*", re.ASCII | re.IGNORECASE)
_CACHE = "private, max-age=31536000, immutable"  # a clip's audio never changes


class CutFields(BaseModel):
    """How an excerpt is cut."""

    model_config = ConfigDict(extra="forbid")

    pad: float = Field(0.0, ge=0, le=MAX_PAD, allow_inf_nan=False, description="Seconds to add on both sides.")
    normalize: bool = Field(False, description="Scale the peak to -1 dBFS.")
    fade: float = Field(
        0.005,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Seconds of fade at each edge that cuts into the sound; 0 for none.",
    )


class AudioQuery(CutFields):
    """Query parameters of GET /clips/{id}/audio. Without any, the response is the file as it was uploaded."""

    start: float | None = Field(None, ge=0, allow_inf_nan=False, description="Seconds; the beginning of the excerpt.")
    end: float | None = Field(None, gt=0, allow_inf_nan=False, description="Seconds; the end of the excerpt.")
    format: Literal["wav", "flac", "ogg"] = Field(
        "wav",
        description="wav and flac keep the samples: sample rate, channels and bit depth are those of the file; ogg is "
        "Vorbis. FLAC has no float samples and at most 24 bits.",
    )

    def cut(self) -> Cut:
        return Cut(self.start, self.end, self.pad, self.format, self.normalize, self.fade)


class DownloadItem(BaseModel):
    """A clip, or a stretch of one in seconds."""

    model_config = ConfigDict(extra="forbid")

    clip_id: str = Field(max_length=100)
    start: float | None = Field(None, ge=0, allow_inf_nan=False)
    end: float | None = Field(None, gt=0, allow_inf_nan=False)


class DownloadRequest(CutFields):
    """Body of POST /clips/download."""

    items: list[DownloadItem] = Field(min_length=1, max_length=MAX_ITEMS)
    format: Literal["original", "wav", "flac", "ogg"] = Field(
        "original", description="original: whole clips as they were uploaded, stretches as wav."
    )


@router.get(
    "/{clip_id}/preview",
    summary="Get a preview of a clip's audio",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"audio/wav": {}}, "description": "A WAV file"},
        206: {"content": {"audio/wav": {}}, "description": "The bytes requested by Range"},
        **openapi.problems(*openapi.ALWAYS, 404, 415, 416),
    },
)
async def preview(clip_id: str, request: Request, state: Serving) -> Response:
    """Returns the sound in a form that every browser plays: 16-bit WAV, mono or stereo, 8 to 48 kHz.

    For clips whose file a browser cannot play, such as AIFF, WMA, 192 kHz and 5.1. A range is decoded on its own.
    """
    return await _respond(request, open_preview(state, clip_id, read_range(request)), "wav")


@router.post(
    "/download",
    summary="Download several sounds as a ZIP archive",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/zip": {}}, "description": "The archive"},
        **openapi.problems(*openapi.ALWAYS, 415),
    },
    openapi_extra=openapi.body(
        json=DownloadRequest,
        examples={
            "a moment and a whole clip": {"items": [{"clip_id": "3f9a", "start": 1.5, "end": 3}, {"clip_id": "77c1"}]}
        },
    ),
)
async def download(request: Request, state: Serving) -> Response:
    """Returns clips and stretches of clips as an uncompressed ZIP archive, written while it is sent.

    The last file of the archive is `sounds.csv`, with a row per item. Files of clips that have a `cat_id` are named
    after the Universal Category System. An item that fails is left out, and its row has the reason in `problem`.
    """
    wanted = await requests.read_json(request, DownloadRequest)
    pieces = write_archive(state, [_item(wanted, item) for item in wanted.items])
    headers = {"Content-Disposition": 'attachment; filename="sounds.zip"'}
    return ClosingStreamingResponse(pieces, media_type="application/zip", headers=headers)


async def respond_with_excerpt(request: Request, state: AppState, clip_id: str, query: AudioQuery) -> Response:
    """The response with an excerpt. Bytes of a WAV file may be requested by Range."""
    cut = query.cut()
    wanted = read_range(request) if cut.format == "wav" else None
    return await _respond(request, open_excerpt(state, clip_id, cut, wanted), cut.format)


def read_range(request: Request) -> Range | None:
    """The only range of a Range header; None if there is none, or it is to be ignored (RFC 9110, section 14.2)."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None:
        return None
    if match[3] is not None:
        return None, int(match[3])
    first, last = int(match[1]), None if match[2] is None else int(match[2])
    return None if last is not None and last < first else (first, last)


def _item(wanted: DownloadRequest, item: DownloadItem) -> Item:
    whole = item.start is None and item.end is None
    if whole and wanted.format == "original":
        return Item(item.clip_id)
    format = "wav" if wanted.format == "original" else wanted.format
    return Item(item.clip_id, Cut(item.start, item.end, wanted.pad, format, wanted.normalize, wanted.fade))


async def _respond(request: Request, opening: contextlib.AbstractAsyncContextManager[Excerpt], format: str) -> Response:
    async with contextlib.AsyncExitStack() as stack:
        excerpt = await stack.enter_async_context(opening)
        stream, status = excerpt.stream, 200
        headers = {
            "Cache-Control": _CACHE,
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(excerpt.filename, safe='')}",
        }
        if stream.length is not None:
            headers["Accept-Ranges"] = "bytes"
            headers["Content-Length"] = str(stream.length)
        if stream.length is not None and stream.first is not None and stream.last is not None:
            if stream.first > stream.last:
                raise RangeNotSatisfiable(stream.length)
            status = 206
            headers["Content-Length"] = str(stream.last - stream.first + 1)
            headers["Content-Range"] = f"bytes {stream.first}-{stream.last}/{stream.length}"
        if "finelap.head" in request.scope:
            return Response(None, status, headers, MEDIA_TYPES[format])
        pieces = _pieces(excerpt, stack.pop_all())
        return ClosingStreamingResponse(pieces, status, headers, MEDIA_TYPES[format])


async def _pieces(excerpt: Excerpt, resources: contextlib.AsyncExitStack) -> AsyncGenerator[bytes, None]:
    async with resources:
        async for piece in excerpt.stream:
            yield piece
