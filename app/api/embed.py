"""POST /embed: embeddings of files and texts."""

from __future__ import annotations

import numpy as np
from fastapi import APIRouter, Request, Response

from app.api import examples, openapi, requests, responses
from app.api.requests import Serving
from app.api.schemas import AudioEmbedding, Embeddings, EmbedForm, EmbedTexts, FrameEmbeddings, TextEmbedding
from app.errors import Invalid
from app.services.audio_source import EmbeddingStream, embed_file, require_frames
from app.services.ingest import Failure, each_file
from model.segments import unit_rows

_INLINE_EMBEDDINGS = 8  # up to which encoding the response costs less than a thread switch

router = APIRouter(tags=["embeddings"])


@router.post(
    "/embed",
    summary="Embed audio and texts",
    response_model=Embeddings,
    responses=openapi.example(examples.EMBEDDINGS, openapi.problems(*openapi.ALWAYS, 415)),
    openapi_extra=openapi.body(
        json=EmbedTexts,
        examples=examples.TEXTS,
        form=EmbedForm,
        file="files",
        many=True,
        form_example={"files": ["(an audio file)"], "texts": ["rain"], "frames": True},
    ),
)
async def embed(request: Request, state: Serving) -> Response:
    """Embeds the texts of a JSON body, or the files and texts of a form. All embeddings have unit length.

    Files that fail are listed in `errors` with the reason. If all fail, the response is the problem of the first one.
    """
    outcomes: list[tuple[EmbeddingStream, np.ndarray] | Failure] = []
    if requests.media_type_of(request) in requests.FORM_TYPES:
        async with requests.open_form(request, EmbedForm, files="files") as form:
            if not form.files and not form.fields.texts:
                raise Invalid("The form has neither files nor texts.")
            if form.fields.frames:
                require_frames(state.engine, "`frames`")
            options = form.fields
            outcomes = await each_file(form.files, lambda file: embed_file(state, file))
    else:
        options = EmbedForm(**(await requests.read_json(request, EmbedTexts)).model_dump())
    errors = responses.file_errors(outcomes)
    texts = await state.engine.embed_texts(options.texts)

    def encode() -> bytes:
        response = Embeddings(
            model=state.engine.name,
            dim=state.engine.dim,
            audio=[_encode_file(*outcome, options) for outcome in outcomes if not isinstance(outcome, Failure)],
            texts=[
                TextEmbedding.model_construct(text=text, embedding=responses.vectors(vector, options.encoding))
                for text, vector in zip(options.texts, texts, strict=True)
            ],
            errors=errors,
        )
        return response.model_dump_json().encode()

    inline = not options.frames and len(outcomes) + len(options.texts) <= _INLINE_EMBEDDINGS
    return Response(encode() if inline else await state.compute(encode), media_type="application/json")


def _encode_file(stream: EmbeddingStream, frames: np.ndarray, options: EmbedForm) -> AudioEmbedding:
    encoded = None
    if options.frames:
        encoded = FrameEmbeddings.model_construct(
            hop=stream.frame_hop, embeddings=responses.vectors(unit_rows(frames), options.encoding)
        )
    return AudioEmbedding.model_construct(
        filename=stream.filename,
        duration=stream.duration,
        track=responses.track(stream.track),
        notes=responses.notes(stream.notes),
        embedding=responses.vectors(stream.embedding, options.encoding),
        frames=encoded,
    )
