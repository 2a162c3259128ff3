"""Searching the library: by a text, by a sound, by a clip; and its best moments."""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request

from app.api import examples, openapi
from app.api import requests as bodies
from app.api import responses as shapes
from app.api.schemas import Moments, MomentsRequest, SearchForm, SearchQuery, SearchRequest, SearchResult, SimilarQuery
from app.errors import Invalid
from app.inference.batcher import Urgency
from app.services.moments import best_moments
from app.services.search import Mode, search
from app.state import Services, Serving

router = APIRouter(tags=["search"])


@router.get(
    "/search",
    summary="Search by words",
    responses=openapi.example(examples.FOUND, openapi.problems(*openapi.ALWAYS)),
)
async def search_by_query(services: Serving, query: Annotated[SearchQuery, Query()]) -> SearchResult:
    """The same as POST /search with JSON; `without` may be repeated."""
    where = None if query.filter is None else bodies.parse_json(query.filter, "the filter")
    values = query.model_dump(exclude={"q", "filter"}) | {"query": query.q, "filter": where}
    return await _by_text(services, bodies.validate(SearchRequest, values))


@router.post(
    "/search",
    summary="Search by words or by a sound",
    response_model=SearchResult,
    responses=openapi.example(examples.FOUND, openapi.problems(*openapi.ALWAYS, 415)),
    openapi_extra=openapi.body(
        json=SearchRequest,
        examples=examples.SEARCHES,
        form=SearchForm,
        file="file",
        form_example={"file": "(a sound file)", "k": 5},
    ),
)
async def search_by_body(request: Request, services: Serving) -> SearchResult:
    """JSON with a `query`, or a form with a `file`: an example of what is wanted.

    With `without`, a clip is left out in which an unwanted sound is heard for about half a second, or which is more
    like an unwanted text than like the query; at most the 2,000 best clips are looked at.
    """
    if bodies.media_type_of(request) not in bodies.FORMS:
        return await _by_text(services, await bodies.read_json(request, SearchRequest))
    began = time.perf_counter()
    async with bodies.open_form(request, SearchForm, files="file", json_fields=("filter",)) as form:
        if len(form.files) != 1:
            raise Invalid(f"A search by example takes one `file`; the form has {len(form.files)}.")
        options = form.fields
        if options.mode == "lexical":
            raise Invalid("A sound has no words: the mode 'lexical' needs a text query.")
        upload = form.files[0]
        recording = await services.embed_file(upload.binary, upload.filename, urgency=Urgency.SEARCH)
    return await _answer(services, recording.filename, recording.clip, "semantic", options, began)


@router.post(
    "/search/moments",
    summary="The best moments of the library",
    response_model=Moments,
    responses=openapi.example(examples.MOMENTS, openapi.problems(*openapi.ALWAYS, 415)),
    openapi_extra=openapi.body(json=MomentsRequest, examples=examples.MOMENT_SEARCHES),
)
async def search_moments(request: Request, services: Serving) -> Moments:
    """Where a sound is heard, or where several are heard one after another, over all clips.

    Looked at are, for each sound, the 200 clips of which some stretch is nearest to it; a moment in any other clip is
    not found.
    In a sequence a sound begins at most `max_gap` seconds after the one before it ends, and at most half a second
    before.
    """
    began = time.perf_counter()
    options = await bodies.read_json(request, MomentsRequest)
    if (options.query is None) == (options.sequence is None):
        raise Invalid("Give a `query` or a `sequence`.")
    sounds = options.sequence or [options.query or ""]
    vectors = await services.engine.embed_texts(sounds, urgency=Urgency.SEARCH)
    found, candidates = await best_moments(services, vectors, options.k, max_gap=options.max_gap, filter=options.filter)
    return Moments(
        query=options.sequence or sounds[0],
        took_ms=_since(began),
        candidates=candidates,
        hits=[shapes.library_moment(moment) for moment in found],
    )


@router.get(
    "/clips/{clip_id}/similar",
    summary="Clips that sound alike",
    responses=openapi.example(examples.FOUND | {"query": "dog barking.ogg"}, openapi.problems(*openapi.ALWAYS, 404)),
)
async def similar(clip_id: str, services: Serving, query: Annotated[SimilarQuery, Query()]) -> SearchResult:
    """Searches with a clip of the library, which is not among the hits."""
    began = time.perf_counter()
    clip = await services.read(services.catalog.get, clip_id)
    vector = await services.read(services.catalog.clip_vector, clip_id)
    found = await search(services, vector, query.k, leave_out=clip_id)
    return SearchResult(query=clip.filename, took_ms=_since(began), hits=shapes.hits(found))


async def _by_text(services: Services, options: SearchRequest) -> SearchResult:
    began = time.perf_counter()
    vector = (await services.engine.embed_texts([options.query], urgency=Urgency.SEARCH))[0]
    return await _answer(services, options.query, vector, options.mode, options, began)


async def _answer(
    services: Services, query: str, vector: np.ndarray, mode: Mode, options: SearchRequest | SearchForm, began: float
) -> SearchResult:
    found = await search(
        services,
        vector,
        options.k,
        mode=mode,
        words=query,
        filter=options.filter,
        min_score=options.min_score,
        moments=options.moments,
        without=await services.engine.embed_texts(options.without, urgency=Urgency.SEARCH) if options.without else None,
    )
    return SearchResult(query=query, took_ms=_since(began), hits=shapes.hits(found))


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 2)
