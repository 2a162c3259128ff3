"""Many clips at once: the same change of all, collections, and counts of values."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from app.api import openapi, requests
from app.api.requests import Serving
from app.api.schemas import ClipsEdit, ClipsEdited, Collection, CollectionPatch, Collections, Facets, FacetValue
from app.errors import CollectionNotFound, Invalid
from app.services.edits import delete_collection, edit_clips, edit_matching, list_collections, rename_collection
from index import ClipEdit

router = APIRouter(tags=["library"])


class FacetsQuery(BaseModel):
    """Query parameters of GET /clips/facets."""

    model_config = ConfigDict(extra="forbid")

    key: list[str] = Field(["tags", "collections"], min_length=1, max_length=20, description="Keys as in a filter.")
    filter: str | None = Field(None, description="A filter as in POST /search, encoded as JSON.")
    limit: int = Field(20, ge=1, le=1000, description="Values of each key, the most frequent.")


@router.post(
    "/clips/edit",
    summary="Change many clips",
    response_model=ClipsEdited,
    responses=openapi.example({"edited": 2, "missing": []}, openapi.problems(*openapi.ALWAYS, 415, 507)),
    openapi_extra=openapi.body(
        json=ClipsEdit,
        examples={
            "tag two clips": {"clip_ids": ["3f9a", "77c1"], "add": {"tags": ["dog"]}},
            "put what passes a filter into a collection": {
                "filter": {"tags": "rain"},
                "add": {"collections": ["rain scene"]},
            },
        },
    ),
)
async def edit(request: Request, state: Serving) -> ClipsEdited:
    """Applies the same change to many clips: a merge patch of the metadata, values to remove from and to add to lists.

    With `clip_ids`, up to 500 clips are changed all or none. With `filter`, those that pass when the request arrives.
    """
    body = await requests.read_json(request, ClipsEdit)
    if (body.clip_ids is None) == (body.filter is None):
        raise Invalid("Provide either `clip_ids` or a `filter`.")
    if not (body.metadata or body.add or body.remove):
        raise Invalid("The change has neither `metadata`, `add` nor `remove`.")
    change = ClipEdit(body.metadata, body.add, body.remove)
    if body.clip_ids is None:
        return ClipsEdited(edited=await edit_matching(state, body.filter or {}, change), missing=[])
    changed = await edit_clips(state, body.clip_ids, change)
    return ClipsEdited(edited=len(changed), missing=[one for one in dict.fromkeys(body.clip_ids) if one not in changed])


@router.get(
    "/clips/facets",
    summary="Count values",
    responses=openapi.example(
        {"facets": {"tags": [{"value": "dog", "clips": 4}], "collections": []}}, openapi.problems(*openapi.ALWAYS)
    ),
)
async def facets(state: Serving, query: Annotated[FacetsQuery, Query()]) -> Facets:
    """Counts the clips that pass the filter by their values of metadata keys or fields, the most frequent first.

    Of `duration`, ranges are counted, by their lower ends: 0, 2, 10, 60 and 600 s. In Milvus, the newest 10,000 clips
    are counted.
    """
    where = None if query.filter is None else requests.parse_json(query.filter, "the filter")
    found = await state.read(state.library.facets, query.key, where, query.limit)
    return Facets(
        facets={key: [FacetValue(value=value, clips=n) for value, n in values] for key, values in found.items()}
    )


@router.get(
    "/collections",
    summary="List collections",
    responses=openapi.example(
        {"collections": [{"name": "rain scene", "clips": 12}]}, openapi.problems(*openapi.ALWAYS)
    ),
)
async def collections(state: Serving) -> Collections:
    """Lists the collections that have a clip. A clip's collections are the list `collections` in its metadata."""
    found = await list_collections(state)
    return Collections(collections=[Collection(name=str(name), clips=clips) for name, clips in found])


@router.patch(
    "/collections/{name:path}",
    summary="Rename a collection",
    response_model=Collection,
    responses=openapi.example({"name": "storm", "clips": 12}, openapi.problems(*openapi.ALWAYS, 404, 415, 507)),
    openapi_extra=openapi.body(json=CollectionPatch, examples={"a new name": {"name": "storm"}}),
)
async def rename(name: str, request: Request, state: Serving) -> Collection:
    """Renames a collection. If another one has the new name, both become one."""
    new = (await requests.read_json(request, CollectionPatch)).name
    clips = await rename_collection(state, name, new)
    if not clips:
        raise CollectionNotFound(f"There is no collection {name!r}.")
    return Collection(name=new, clips=clips)


@router.delete(
    "/collections/{name:path}",
    summary="Delete a collection",
    status_code=204,
    responses=openapi.problems(*openapi.ALWAYS, 404),
)
async def delete(name: str, state: Serving) -> None:
    """Deletes a collection. Its clips stay in the library, and in their other collections."""
    if not await delete_collection(state, name):
        raise CollectionNotFound(f"There is no collection {name!r}.")
