"""POST /v1/embeddings and /v1/models, compatible with the OpenAI API; audio is sent as base64 data URIs.

Errors are problems with an additional OpenAI `error` object (app.errors). A request succeeds or fails as a whole: the
response format has no place for failed items.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter, ValidationError

from app.api import examples, openapi, requests, responses, schemas
from app.api.requests import Serving
from app.errors import Invalid, ModelNotFound
from app.services.audio_source import AudioFile, embed_file
from app.services.ingest import Failure, each_file
from app.state import AppState

router = APIRouter(prefix="/v1", tags=["embeddings"])

_MAX_BODY_BYTES = 64 * 10**6  # held in memory: about ten minutes of WAV, or hours of compressed audio
_TEXT: TypeAdapter[str] = TypeAdapter(schemas.Text)
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[^;,]*)*;base64,", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class _AudioInput:
    """A data URI of the input, named by its index."""

    index: int
    uri: str

    @property
    def filename(self) -> str:
        return f"input[{self.index}]"

    async def decode(self) -> bytes:
        """The file's bytes. Raises Invalid."""
        head = _DATA_URI.match(self.uri)
        if head is None:
            raise Invalid(
                f"{self.filename}: audio must be a base64 data URI, such as data:audio/wav;base64,UklGRg…",
                index=self.index,
            )
        try:
            return await asyncio.to_thread(_decode_base64, self.uri[head.end() :])
        except (binascii.Error, ValueError) as error:
            raise Invalid(f"{self.filename}: the data URI is not valid base64: {error}", index=self.index) from error


@router.post(
    "/embeddings",
    summary="Embed texts or audio (OpenAI)",
    response_model=schemas.OpenAIEmbeddings,
    responses=openapi.example(examples.OPENAI_EMBEDDINGS, openapi.problems(*openapi.ALWAYS, 404, 415)),
    openapi_extra=openapi.body(json=schemas.OpenAIRequest, examples=examples.OPENAI_REQUESTS),
)
async def embeddings(request: Request, state: Serving) -> Response:
    """Works with OpenAI's own clients: `client.embeddings.create(model=…, input=…)`, with
    `extra_body={"modality": "audio"}` for audio. The embeddings are those of POST /embed.

    If one item of the input is invalid the whole request fails, and the problem names its index.
    """
    options = await requests.read_json(request, schemas.OpenAIRequest, _MAX_BODY_BYTES)
    engine = state.engine
    _check_model(state, options.model)
    if options.dimensions not in (None, engine.dim):
        raise Invalid(f"dimensions: this model has {engine.dim}, which cannot be changed.")
    if options.modality == "audio":
        vectors, tokens = await _embed_audio(state, options.input, options.track)
    else:
        texts = [_normalize_text(index, text) for index, text in enumerate(options.input)]
        vectors, tokens = await engine.embed_texts(texts), await engine.count_tokens(texts)

    def encode() -> bytes:
        response = schemas.OpenAIEmbeddings(
            data=[
                schemas.OpenAIEmbedding.model_construct(
                    index=index, embedding=responses.vectors(vector, options.encoding_format)
                )
                for index, vector in enumerate(vectors)
            ],
            model=engine.name,
            usage=schemas.OpenAIUsage(prompt_tokens=tokens, total_tokens=tokens),
        )
        return response.model_dump_json().encode()

    return Response(await state.compute(encode), media_type="application/json")


@router.get(
    "/models",
    summary="List models (OpenAI)",
    responses=openapi.example(examples.OPENAI_MODELS, openapi.problems(*openapi.ALWAYS)),
)
async def models(state: Serving) -> schemas.OpenAIModels:
    return schemas.OpenAIModels(data=[schemas.OpenAIModel(id=state.engine.name)])


@router.get(
    "/models/{model:path}",
    summary="Get a model (OpenAI)",
    responses=openapi.example(examples.OPENAI_MODELS["data"][0], openapi.problems(*openapi.ALWAYS, 404)),
)
async def model(model: str, state: Serving) -> schemas.OpenAIModel:
    _check_model(state, model)
    return schemas.OpenAIModel(id=model)


def _check_model(state: AppState, model: str | None) -> None:
    name = state.engine.name
    if model is not None and model != name:
        raise ModelNotFound(f"There is no model {model[:100]!r}; this service has {name!r}.")


def _normalize_text(index: int, text: str) -> str:
    try:
        return _TEXT.validate_python(text)
    except ValidationError as error:
        raise Invalid(f"input[{index}]: {error.errors()[0]['msg']}", index=index) from error


async def _embed_audio(state: AppState, uris: list[str], track: str | None) -> tuple[np.ndarray, int]:
    """Embeddings (B, D), and the number of frames that they were computed from."""

    async def embed(item: _AudioInput) -> tuple[np.ndarray, int]:
        stream, frames = await embed_file(state, AudioFile(item.filename, io.BytesIO(await item.decode()), track))
        return stream.embedding, len(frames)

    state.engine.refuse_if_full()
    outcomes = await each_file([_AudioInput(index, uri) for index, uri in enumerate(uris)], embed)
    embedded = []
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise outcome.error
        embedded.append(outcome)
    return np.stack([clip for clip, _ in embedded]), sum(frames for _, frames in embedded)


def _decode_base64(data: str) -> bytes:
    # any character of a URI may be percent-encoded
    return base64.b64decode(unquote_to_bytes(data) if "%" in data else data, validate=True)
