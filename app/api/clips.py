"""The clips of the library: add, list, change, delete, near-duplicates, audio files, waveform peaks and loudness."""

from __future__ import annotations

import os
from email.utils import formatdate
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

import index
from app.api import examples, openapi, requests, responses
from app.api.conditional import Version, evaluate
from app.api.excerpts import AudioQuery, respond_with_excerpt
from app.api.requests import Serving
from app.api.schemas import AddedClips, Clip, ClipPage, ClipPatch, Duplicates, Loudness, Peaks, PeaksQuery, TrackChoice
from app.audio.containers import media_type
from app.audio.peaks import reduce_peaks
from app.errors import Invalid, PreconditionFailed, RangeNotSatisfiable
from app.services.duplicates import find_duplicates
from app.services.edits import edit_clip
from app.services.ingest import Failure, add_file, each_file
from app.services.references import add_reference
from app.services.waveforms import LoudnessCache, PeaksCache

router = APIRouter(prefix="/clips", tags=["library"])


class AddForm(BaseModel):
    """Form fields of POST /clips, besides `files`."""

    model_config = ConfigDict(extra="forbid")

    metadata: dict[str, Any] | list[dict[str, Any] | None] | None = Field(
        None,
        description="JSON: one object for all files, or an array with one object per file.",
        examples=[{"tags": ["dog"]}],
    )
    track: TrackChoice | None = None


class ListQuery(BaseModel):
    """Query parameters of GET /clips."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=1000)
    cursor: str | None = Field(None, description="`next_cursor` of the previous page, with the same `sort`.")
    sort: Literal["-created", "created", "filename", "-filename", "duration", "-duration"] = Field(
        "-created", description="The sort key; a minus reverses the order. -created: newest first."
    )
    filter: str | None = Field(
        None, description="A filter as in POST /search, encoded as JSON.", examples=['{"tags": "animal"}']
    )


@router.post(
    "",
    summary="Add audio files",
    status_code=201,
    response_model=AddedClips,
    responses={
        **openapi.example(examples.ADDED, openapi.problems(*openapi.ALWAYS, 415, 507), status=201),
        200: {"model": AddedClips, "description": "All files were in the library already"},
    },
    openapi_extra=openapi.body(
        form=AddForm,
        file="files",
        many=True,
        form_example={"files": ["(an audio file)"], "metadata": {"tags": ["field"]}},
    ),
)
async def add(request: Request, state: Serving) -> Response:
    """Adds files to the library. After a 201 response they are searchable, and they survive a crash.

    Files that fail are listed in `errors` with the reason, and the others are added. If all files fail, the response
    is the problem of the first one. For a file whose bytes are already in the library, the existing clip is returned.
    """
    state.engine.refuse_if_full()
    async with requests.open_form(request, AddForm, files="files", json_fields=("metadata",)) as form:
        if not form.files:
            raise Invalid("The form has no `files`.")
        metadata = dict(zip(form.files, _for_each(form.fields.metadata, len(form.files)), strict=True))
        outcomes = await each_file(form.files, lambda upload: add_file(state, upload, metadata[upload]))
    errors = responses.file_errors(outcomes)
    added = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
    response = AddedClips(clips=[responses.clip(clip) for clip, _ in added], errors=errors)
    return JSONResponse(response.model_dump(), 201 if any(created for _, created in added) else 200)


class ReferenceBody(BaseModel):
    """Body of POST /clips/reference."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        min_length=1, max_length=4096, description="Absolute path of an audio file, on the machine of the service."
    )
    metadata: dict[str, Any] = Field({}, description="As in POST /clips.")


@router.post(
    "/reference",
    summary="Add an audio file that stays where it is",
    status_code=201,
    response_model=AddedClips,
    responses={
        **openapi.example(examples.ADDED, openapi.problems(*openapi.ALWAYS, 415, 507), status=201),
        200: {"model": AddedClips, "description": "The file was in the library already"},
    },
    openapi_extra=openapi.body(json=ReferenceBody, examples={"a file": {"path": "/srv/sounds/rain.wav"}}),
)
async def refer(request: Request, state: Serving) -> Response:
    """Adds a file without copying it. It must be in a folder of `FINELAP_REFERENCE_ROOTS`.

    If the library has the same bytes already, the existing clip is returned; one without a copy of its audio refers to
    this path from now on, so a moved file is not analysed again. Audio of a file that was changed or deleted is
    missing.
    """
    body = await requests.read_json(request, ReferenceBody)
    if not state.settings.in_folder:
        raise Invalid("A library in Milvus cannot refer to files: add them with POST /clips.")
    state.engine.refuse_if_full()
    name = requests.clean_filename(Path(body.path).name)
    clip, created = await add_reference(state, body.path, name, body.metadata)
    response = AddedClips(clips=[responses.clip(clip)], errors=[])
    return JSONResponse(response.model_dump(), 201 if created else 200)


@router.get(
    "",
    summary="List clips",
    responses=openapi.example(examples.PAGE, openapi.problems(*openapi.ALWAYS)),
)
async def list_clips(state: Serving, query: Annotated[ListQuery, Query()]) -> ClipPage:
    """Lists clips page by page, in a stable order."""
    where = None if query.filter is None else requests.parse_json(query.filter, "the filter")
    clips, cursor = await state.read(state.library.list, query.limit, query.cursor, where, query.sort)
    return ClipPage(clips=[responses.clip(clip) for clip in clips], next_cursor=cursor)


@router.get(
    "/duplicates",
    summary="List near-duplicates",
    responses=openapi.example(examples.DUPLICATES, openapi.problems(*openapi.ALWAYS)),
)
async def duplicates(state: Serving) -> Duplicates:
    """Groups clips that are the same recording in another format, at another level, or slightly trimmed.

    Compares the whole library and decodes candidates: this takes seconds for thousands of clips, minutes for far more.
    """
    groups = await find_duplicates(state)
    return Duplicates(groups=[[responses.clip(clip) for clip in group] for group in groups])


@router.get(
    "/{clip_id}",
    summary="Get a clip",
    responses=openapi.example(examples.CLIP, openapi.problems(*openapi.ALWAYS, 404)),
)
async def get(clip_id: str, state: Serving) -> Clip:
    """Returns a clip's properties and metadata."""
    return responses.clip(await state.read(state.library.get, clip_id))


@router.patch(
    "/{clip_id}",
    summary="Change a clip's metadata or name",
    response_model=Clip,
    responses=openapi.example(examples.CLIP, openapi.problems(*openapi.ALWAYS, 404, 415, 507)),
    openapi_extra=openapi.body(json=ClipPatch, examples=examples.PATCH),
)
async def change(clip_id: str, request: Request, state: Serving) -> Clip:
    """Applies a JSON merge patch (RFC 7396) to `metadata`: sets the given keys, and removes those that are null.

    `remove` and `add` change lists, such as tags, whatever else is in them. `filename` renames the clip.
    """
    patch = await requests.read_json(request, ClipPatch)
    if not patch.model_fields_set:
        raise Invalid("The change has neither `metadata`, `add`, `remove` nor `filename`.")
    name = None if patch.filename is None else requests.clean_filename(patch.filename)
    change = index.ClipEdit(patch.metadata, patch.add, patch.remove, name)
    return responses.clip(await edit_clip(state, clip_id, change))


@router.delete("/{clip_id}", summary="Delete a clip", status_code=204, responses=openapi.problems(*openapi.ALWAYS, 404))
async def delete(clip_id: str, state: Serving) -> None:
    """Deletes a clip, its embeddings and its audio file."""
    await state.write(state.library.delete, clip_id)


@router.get(
    "/{clip_id}/audio",
    summary="Get a clip's audio file",
    response_class=FileResponse,
    responses={
        200: {"content": {"audio/*": {}}, "description": "The file as it was uploaded"},
        206: {"content": {"audio/*": {}}, "description": "The bytes requested by Range"},
        304: {"description": "The client has this version already (If-None-Match, If-Modified-Since)"},
        **openapi.problems(*openapi.ALWAYS, 404, 412, 415, 416),
    },
)
async def audio(clip_id: str, request: Request, state: Serving, query: Annotated[AudioQuery, Query()]) -> Response:
    """Returns the uploaded file, whole or in ranges, or with any parameter an excerpt of it.

    Answers conditional requests (RFC 9110, sections 13 and 14). An excerpt has the sample rate, channels and bit depth
    of the file, its `bext` and iXML chunks with the time reference moved, and short fades where it cuts into the sound.
    Lossy files are decoded to 24 bits.
    """
    if query.model_fields_set:
        return await respond_with_excerpt(request, state, clip_id, query)
    file = await state.read(_open_audio, state.library, clip_id)
    if "finelap.head" in request.scope:
        request.scope["method"] = "HEAD"  # so that FileResponse does not read the file
    version = Version(f'"{file.clip.sha256}"', file.stat.st_mtime, file.stat.st_size)
    outcome = evaluate(request.scope["method"], request.headers, version)
    headers = {
        "ETag": version.etag,
        "Last-Modified": formatdate(int(version.modified), usegmt=True),
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    if outcome.status == 304:
        return Response(status_code=304, headers=headers)
    if outcome.status == 412:
        raise PreconditionFailed("The file is another version than the one that the request requires.")
    if outcome.status == 416:
        raise RangeNotSatisfiable(version.size)
    # FileResponse gets only the ranges that are to be served
    kept = [header for header in request.scope["headers"] if header[0] not in (b"range", b"if-range")]
    if outcome.status == 206:
        ranges = ",".join(f"{first}-{last}" for first, last in outcome.ranges)
        kept.append((b"range", f"bytes={ranges}".encode()))
    request.scope["headers"] = kept
    return FileResponse(
        file.path,
        media_type=media_type(file.head),
        filename=file.clip.filename,
        content_disposition_type="inline",
        stat_result=file.stat,
        headers=headers,
    )


@router.get(
    "/{clip_id}/peaks",
    summary="Get a clip's waveform peaks",
    responses=openapi.example(examples.PEAKS, openapi.problems(*openapi.ALWAYS, 404, 415)),
)
async def peaks(clip_id: str, request: Request, state: Serving, query: Annotated[PeaksQuery, Query()]) -> Peaks:
    """Returns the lowest and highest sample of each of `n` equal intervals, for drawing the waveform.

    The first request for a clip decodes it; its peaks are then cached in memory.
    """
    cache: PeaksCache = request.app.state.peaks
    clip, full = await cache.get(state, clip_id)
    columns = await state.compute(reduce_peaks, full, query.n)
    return Peaks(
        id=clip.id, duration=clip.duration, n=query.n, peaks=np.round(columns.T.astype(np.float64), 4).tolist()
    )


@router.get(
    "/{clip_id}/loudness",
    summary="Get a clip's loudness",
    responses=openapi.example(examples.LOUDNESS, openapi.problems(*openapi.ALWAYS, 404, 415)),
)
async def loudness(clip_id: str, request: Request, state: Serving) -> Loudness:
    """Measures the integrated loudness (EBU R128, ITU-R BS.1770) and the largest sample, at the file's own rate.

    A clip shorter than 400 ms is measured as if it were repeated, one over ten minutes in 60 stretches of 10 seconds.
    The first request for a clip decodes it; the result is then kept in memory.
    """
    cache: LoudnessCache = request.app.state.loudness
    clip, measured = await cache.get(state, clip_id)
    return Loudness(id=clip.id, integrated=measured.integrated, peak=measured.peak)


class _AudioFile(NamedTuple):
    clip: index.Clip
    path: Path
    stat: os.stat_result
    head: bytes


def _open_audio(library: index.Library, clip_id: str) -> _AudioFile:
    clip, path = library.get(clip_id), library.audio_path(clip_id)
    with path.open("rb") as file:
        return _AudioFile(clip, path, os.fstat(file.fileno()), file.read(16))


def _for_each(metadata: dict[str, Any] | list[dict[str, Any] | None] | None, files: int) -> list[dict[str, Any]]:
    """The metadata of each file."""
    if not isinstance(metadata, list):
        return [dict(metadata or {}) for _ in range(files)]
    if len(metadata) != files:
        raise Invalid(f"`metadata` has {len(metadata)} objects for {files} files.")
    return [own or {} for own in metadata]
