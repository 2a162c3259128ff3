"""Search: by text, by audio, by a clip, and for the best moments of the library."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request

from app.api import examples, openapi, requests, responses
from app.api.requests import Serving
from app.api.schemas import Moments, MomentsRequest, SearchForm, SearchQuery, SearchRequest, SearchResult, SimilarQuery
from app.errors import Invalid
from app.services.audio_source import AudioFile
from app.services.moments import search_moments
from app.services.search import Example, SearchOptions, search, search_by_clip
from app.state import AppState

router = APIRouter(tags=["search"])


@router.get(
    "/search",
    summary="Search by text",
    responses=openapi.example(examples.FOUND, openapi.problems(*openapi.ALWAYS, 404, 409)),
)
async def search_by_query(state: Serving, query: Annotated[SearchQuery, Query()]) -> SearchResult:
    """Same as POST /search with JSON; `without` may be repeated."""
    where = None if query.filter is None else requests.parse_json(query.filter, "the filter")
    values = query.model_dump(exclude={"q", "filter"}) | {"query": query.q, "filter": where}
    return await _search(state, requests.validate(SearchRequest, values))


@router.post(
    "/search",
    summary="Search by text, by audio or by both",
    response_model=SearchResult,
    responses=openapi.example(examples.FOUND, openapi.problems(*openapi.ALWAYS, 404, 409, 415)),
    openapi_extra=openapi.body(
        json=SearchRequest,
        examples=examples.SEARCHES,
        form=SearchForm,
        file="file",
        form_example={"file": "(an audio file)", "query": "in a large hall", "k": 5},
    ),
)
async def search_by_body(request: Request, state: Serving) -> SearchResult:
    """Searches with the `query` of a JSON body, with the `file` of a form as an example, or with both in a form.

    `like` and `unlike` refine either with clips of the library, or replace the query. `without` excludes clips that
    contain an unwanted sound; at most the 2,000 best clips are considered then.
    """
    if requests.media_type_of(request) not in requests.FORM_TYPES:
        return await _search(state, await requests.read_json(request, SearchRequest))
    fields = ("filter", "like", "unlike")
    async with requests.open_form(request, SearchForm, files="file", json_fields=fields) as form:
        if len(form.files) != 1:
            raise Invalid(f"A search by audio requires exactly one `file`; the form has {len(form.files)}.")
        return await _search(state, form.fields, form.files[0])


@router.post(
    "/search/moments",
    summary="Search for moments",
    response_model=Moments,
    responses=openapi.example(examples.MOMENTS, openapi.problems(*openapi.ALWAYS, 404, 409, 415)),
    openapi_extra=openapi.body(json=MomentsRequest, examples=examples.MOMENT_SEARCHES),
)
async def search_for_moments(request: Request, state: Serving) -> Moments:
    """Finds where a sound occurs, or where several sounds follow one another, across all clips.

    For each sound, the 200 clips with the most similar segments are scored frame by frame; moments in other clips are
    not found. In a sequence, each sound begins at most `max_gap` seconds after the previous one ends, and at most half
    a second before that.
    """
    began = time.perf_counter()
    options = await requests.read_json(request, MomentsRequest)
    if (options.query is None) == (options.sequence is None):
        raise Invalid("Provide either a `query` or a `sequence`.")
    sounds = options.sequence or [options.query or ""]
    moments, candidates = await search_moments(
        state, sounds, options.k, max_gap=options.max_gap, filter=options.filter, min_score=options.min_score
    )
    return Moments(
        query=options.sequence or sounds[0],
        took_ms=_ms_since(began),
        candidates=candidates,
        hits=[responses.library_moment(moment) for moment in moments],
    )


@router.get(
    "/clips/{clip_id}/similar",
    summary="Find similar clips",
    responses=openapi.example(examples.FOUND | {"query": "dog barking.ogg"}, openapi.problems(*openapi.ALWAYS, 404)),
)
async def similar(clip_id: str, state: Serving, query: Annotated[SimilarQuery, Query()]) -> SearchResult:
    """Searches with a clip of the library, which is not one of the hits."""
    began = time.perf_counter()
    found = await search_by_clip(state, clip_id, SearchOptions(k=query.k))
    return responses.search_result(found, _ms_since(began))


async def _search(state: AppState, request: SearchRequest | SearchForm, file: AudioFile | None = None) -> SearchResult:
    began = time.perf_counter()
    found = await search(state, _options(request), text=request.query, file=file)
    return responses.search_result(found, _ms_since(began))


def _options(request: SearchRequest | SearchForm) -> SearchOptions:
    return SearchOptions(
        k=request.k,
        mode=request.mode,
        filter=request.filter,
        min_score=request.min_score,
        moments=request.moments,
        without=request.without,
        like=[Example(one.clip_id, one.start, one.end) for one in request.like],
        unlike=[Example(one.clip_id, one.start, one.end) for one in request.unlike],
    )


def _ms_since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 2)
