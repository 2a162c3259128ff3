"""The library: adding, listing, changing, deleting clips, and their audio."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from app.api import examples, openapi
from app.api import requests as bodies
from app.api import responses as shapes
from app.api.ranges import can_serve
from app.api.schemas import AddedClips, Clip, ClipPage, ClipPatch, Duplicates, Peaks, PeaksQuery
from app.audio.containers import media_type
from app.audio.peaks import reduce
from app.errors import Invalid, RangeNotSatisfiable
from app.services.duplicates import find_duplicates
from app.services.ingest import Failure, add_file, each_file
from app.services.waveforms import Waveforms
from app.state import Serving

router = APIRouter(prefix="/clips", tags=["library"])


class AddForm(BaseModel):
    """What POST /clips takes, beside `files`."""

    model_config = ConfigDict(extra="forbid")

    metadata: dict[str, Any] | list[dict[str, Any] | None] | None = Field(
        None,
        description="JSON: an object for all files, or an array with one for each file.",
        examples=[{"tags": ["dog"]}],
    )


class ListQuery(BaseModel):
    """What GET /clips takes."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=1000)
    cursor: str | None = Field(None, description="`next_cursor` of the page before, with the same `sort`.")
    sort: Literal["-created", "created", "filename", "-filename", "duration", "-duration"] = Field(
        "-created", description="By what; a minus turns it round. -created: newest first."
    )
    filter: str | None = Field(None, description="JSON, as in a search.", examples=['{"tags": "animal"}'])


@router.post(
    "",
    summary="Add sounds",
    status_code=201,
    response_model=AddedClips,
    responses={
        **openapi.example(examples.ADDED, openapi.problems(*openapi.ALWAYS, 415, 507), status=201),
        200: {"model": AddedClips, "description": "All of them were there already"},
    },
    openapi_extra=openapi.body(
        form=AddForm,
        file="files",
        many=True,
        form_example={"files": ["(a sound file)"], "metadata": {"tags": ["field"]}},
    ),
)
async def add(request: Request, services: Serving) -> Response:
    """Adds files; when this answers 201 they are searchable and survive a crash.

    A file that fails is named in `errors` with its reason, and the others are kept; if all fail the answer is the
    problem of the first. A file whose bytes are in the library already gives the clip that is there.
    """
    services.engine.refuse_if_full()
    async with bodies.open_form(request, AddForm, files="files", json_fields=("metadata",)) as form:
        if not form.files:
            raise Invalid("The form has no `files`.")
        about = dict(zip(form.files, _for_each(form.fields.metadata, len(form.files)), strict=True))
        outcomes = await each_file(form.files, lambda upload: add_file(services, upload, about[upload]))
    failed = shapes.file_errors(outcomes)
    there = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
    added = AddedClips(clips=[shapes.clip(clip) for clip, _ in there], errors=failed)
    return JSONResponse(added.model_dump(), 201 if any(created for _, created in there) else 200)


@router.get(
    "",
    summary="List clips",
    responses=openapi.example(examples.PAGE, openapi.problems(*openapi.ALWAYS)),
)
async def list_clips(services: Serving, query: Annotated[ListQuery, Query()]) -> ClipPage:
    where = None if query.filter is None else bodies.parse_json(query.filter, "the filter")
    clips, cursor = await services.read(services.catalog.list, query.limit, query.cursor, where, query.sort)
    return ClipPage(clips=[shapes.clip(clip) for clip in clips], next_cursor=cursor)


@router.get(
    "/duplicates",
    summary="Clips that are one recording",
    responses=openapi.example(examples.DUPLICATES, openapi.problems(*openapi.ALWAYS)),
)
async def duplicates(services: Serving) -> Duplicates:
    """Groups of clips that are the same recording in another format, at another level, or trimmed a little.

    Looks at the whole library and decodes what is alike: seconds for thousands of clips, minutes for many more.
    """
    groups = await find_duplicates(services)
    return Duplicates(groups=[[shapes.clip(clip) for clip in group] for group in groups])


@router.get(
    "/{clip_id}",
    summary="One clip",
    responses=openapi.example(examples.CLIP, openapi.problems(*openapi.ALWAYS, 404)),
)
async def get(clip_id: str, services: Serving) -> Clip:
    return shapes.clip(await services.read(services.catalog.get, clip_id))


@router.patch(
    "/{clip_id}",
    summary="Change a clip's metadata",
    response_model=Clip,
    responses=openapi.example(examples.CLIP, openapi.problems(*openapi.ALWAYS, 404, 415, 507)),
    openapi_extra=openapi.body(json=ClipPatch, examples=examples.PATCH),
)
async def change(clip_id: str, request: Request, services: Serving) -> Clip:
    """A JSON merge patch (RFC 7396): keys of `metadata` are set, null removes one."""
    patch = await bodies.read_json(request, ClipPatch)
    return shapes.clip(await services.write(services.catalog.update_metadata, clip_id, patch.metadata))


@router.delete("/{clip_id}", summary="Delete a clip", status_code=204, responses=openapi.problems(*openapi.ALWAYS, 404))
async def delete(clip_id: str, services: Serving) -> None:
    await services.write(services.catalog.delete, clip_id)


@router.get(
    "/{clip_id}/audio",
    summary="A clip's file, as it was uploaded",
    response_class=FileResponse,
    responses={
        200: {"content": {"audio/*": {}}, "description": "The file"},
        206: {"content": {"audio/*": {}}, "description": "The bytes asked for with Range"},
        **openapi.problems(*openapi.ALWAYS, 404, 416),
    },
)
async def audio(clip_id: str, request: Request, services: Serving) -> Response:
    catalog = services.catalog

    def look() -> tuple[Any, Any, os.stat_result, bytes]:
        clip, path = catalog.get(clip_id), catalog.audio_path(clip_id)
        with path.open("rb") as file:
            return clip, path, os.fstat(file.fileno()), file.read(16)

    clip, path, stat, head = await services.read(look)
    if "finelap.head" in request.scope:
        request.scope["method"] = "HEAD"  # so that the file is not read
    wanted = request.headers.get("range")
    if wanted is not None:
        usable = can_serve(wanted, stat.st_size)
        if usable is None:  # to be ignored, RFC 9110 section 14.2
            request.scope["headers"] = [h for h in request.scope["headers"] if h[0] != b"range"]
        elif not usable:
            raise RangeNotSatisfiable(stat.st_size)
    return FileResponse(
        path,
        media_type=media_type(head),
        filename=clip.filename,
        content_disposition_type="inline",
        stat_result=stat,
        headers={
            "ETag": f'"{clip.sha256}"',
            "Cache-Control": "private, max-age=31536000, immutable",
        },
    )


@router.get(
    "/{clip_id}/peaks",
    summary="The outline of a clip's waveform",
    responses=openapi.example(examples.PEAKS, openapi.problems(*openapi.ALWAYS, 404, 415)),
)
async def peaks(clip_id: str, request: Request, services: Serving, query: Annotated[PeaksQuery, Query()]) -> Peaks:
    """To draw it: the lowest and highest sample of each of `n` equal stretches.

    The first time a clip is asked for it is decoded; its outline is then kept in memory for a while.
    """
    waveforms: Waveforms = request.app.state.waveforms
    clip, levels = await waveforms.outline(services, clip_id)
    columns = await services.compute(reduce, levels, query.n)
    return Peaks(
        id=clip.id, duration=clip.duration, n=query.n, peaks=np.round(columns.T.astype(np.float64), 4).tolist()
    )


def _for_each(metadata: dict[str, Any] | list[dict[str, Any] | None] | None, files: int) -> list[dict[str, Any]]:
    if not isinstance(metadata, list):
        return [dict(metadata or {}) for _ in range(files)]
    if len(metadata) != files:
        raise Invalid(f"`metadata` has {len(metadata)} objects for {files} files.")
    return [about or {} for about in metadata]
