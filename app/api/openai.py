"""Embeddings in OpenAI's shape, for programs that speak it; audio comes as base64 data URIs.

Errors are problems as everywhere, with OpenAI's `error` object beside (app.errors). All or nothing: the shape has no
place for items that failed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter, ValidationError

from app.api import examples, openapi, schemas
from app.api import requests as bodies
from app.api import responses as shapes
from app.errors import Invalid, ModelNotFound
from app.services.ingest import Failure, each_file
from app.state import Services, Serving

router = APIRouter(prefix="/v1", tags=["embeddings"])

_MAX_BODY = 64 * 10**6  # bytes, which are kept in memory: about ten minutes of WAV, hours of what is compressed
_TEXT: TypeAdapter[str] = TypeAdapter(schemas.Text)
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[^;,]*)*;base64,", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class _Item:
    """One sound of the input, named by its place there."""

    index: int
    uri: str

    @property
    def filename(self) -> str:
        return f"input[{self.index}]"

    async def read(self) -> bytes:
        """The file's bytes. Raises Invalid."""
        head = _DATA_URI.match(self.uri)
        if head is None:
            raise Invalid(
                f"{self.filename}: audio must be a base64 data URI, such as data:audio/wav;base64,UklGRg…",
                index=self.index,
            )
        try:
            return await asyncio.to_thread(_decode, self.uri[head.end() :])
        except (binascii.Error, ValueError) as error:
            raise Invalid(f"{self.filename}: the data URI is not valid base64: {error}", index=self.index) from error


@router.post(
    "/embeddings",
    summary="Embeddings in OpenAI's shape",
    response_model=schemas.OpenAIEmbeddings,
    responses=openapi.example(examples.OPENAI_EMBEDDINGS, openapi.problems(*openapi.ALWAYS, 404, 415)),
    openapi_extra=openapi.body(json=schemas.OpenAIRequest, examples=examples.OPENAI_REQUESTS),
)
async def embeddings(request: Request, services: Serving) -> Response:
    """Works with OpenAI's own clients: `client.embeddings.create(model=…, input=…)`, with
    `extra_body={"modality": "audio"}` for sounds. The embeddings are those of POST /embed.

    If one item of the input cannot be used, none is, and the problem names its index.
    """
    wanted = await bodies.read_json(request, schemas.OpenAIRequest, _MAX_BODY)
    engine = services.engine
    _find(services, wanted.model)
    if wanted.dimensions not in (None, engine.dim):
        raise Invalid(f"dimensions: this model has {engine.dim}, and they cannot be reduced.")
    if wanted.modality == "audio":
        vectors, tokens = await _sounds(services, wanted.input)
    else:
        texts = [_text(index, text) for index, text in enumerate(wanted.input)]
        vectors, tokens = await engine.embed_texts(texts), await engine.count_tokens(texts)

    def answer() -> bytes:
        answered = schemas.OpenAIEmbeddings(
            data=[
                schemas.OpenAIEmbedding.model_construct(
                    index=index, embedding=shapes.vectors(vector, wanted.encoding_format)
                )
                for index, vector in enumerate(vectors)
            ],
            model=engine.name,
            usage=schemas.OpenAIUsage(prompt_tokens=tokens, total_tokens=tokens),
        )
        return answered.model_dump_json().encode()

    return Response(await services.compute(answer), media_type="application/json")


@router.get(
    "/models",
    summary="The model in use, in OpenAI's shape",
    responses=openapi.example(examples.OPENAI_MODELS, openapi.problems(*openapi.ALWAYS)),
)
async def models(services: Serving) -> schemas.OpenAIModels:
    return schemas.OpenAIModels(data=[schemas.OpenAIModel(id=services.engine.name)])


@router.get(
    "/models/{model:path}",
    summary="One model, in OpenAI's shape",
    responses=openapi.example(examples.OPENAI_MODELS["data"][0], openapi.problems(*openapi.ALWAYS, 404)),
)
async def model(model: str, services: Serving) -> schemas.OpenAIModel:
    _find(services, model)
    return schemas.OpenAIModel(id=model)


def _find(services: Services, model: str | None) -> None:
    name = services.engine.name
    if model is not None and model != name:
        raise ModelNotFound(f"No model has the name {model[:100]!r}; this service has {name!r}.")


def _text(index: int, text: str) -> str:
    try:
        return _TEXT.validate_python(text)
    except ValidationError as error:
        raise Invalid(f"input[{index}]: {error.errors()[0]['msg']}", index=index) from error


async def _sounds(services: Services, uris: list[str]) -> tuple[np.ndarray, int]:
    """(B, D) embeddings, and how many frames they were made of."""

    async def embed(item: _Item) -> tuple[np.ndarray, int]:
        recording = await services.embed_file(await item.read(), item.filename)
        return recording.clip, len(recording.frames)

    services.engine.refuse_if_full()
    outcomes = await each_file([_Item(index, uri) for index, uri in enumerate(uris)], embed)
    embedded = []
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise outcome.error
        embedded.append(outcome)
    return np.stack([clip for clip, _ in embedded]), sum(frames for _, frames in embedded)


def _decode(data: str) -> bytes:
    # a URI may write any character as %XX
    return base64.b64decode(unquote_to_bytes(data) if "%" in data else data, validate=True)
