"""POST /embed: files and texts into the embedding space."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.api import examples, openapi
from app.api import requests as bodies
from app.api import responses as shapes
from app.api.requests import Upload
from app.api.schemas import AudioEmbedding, Embeddings, EmbedForm, EmbedTexts, FrameEmbeddings, TextEmbedding
from app.errors import Invalid
from app.services.audio_source import Recording
from app.services.ingest import Failure, each_file
from app.state import Services, Serving

_SHORT = 8  # embeddings whose answer is written in less time than a thread takes to begin

router = APIRouter(tags=["embeddings"])


@router.post(
    "/embed",
    summary="Embeddings of sounds and texts",
    response_model=Embeddings,
    responses=openapi.example(examples.EMBEDDINGS, openapi.problems(*openapi.ALWAYS, 415)),
    openapi_extra=openapi.body(
        json=EmbedTexts,
        examples=examples.TEXTS,
        form=EmbedForm,
        file="files",
        many=True,
        form_example={"files": ["(a sound file)"], "texts": ["rain"], "frames": True},
    ),
)
async def embed(request: Request, services: Serving) -> Response:
    """Texts as JSON, or files and texts as a form. All embeddings have unit length.

    A file that fails is named in `errors` with its reason; if all fail the answer is the problem of the first.
    """
    outcomes: list[Recording | Failure] = []
    if bodies.media_type_of(request) in bodies.FORMS:
        async with bodies.open_form(request, EmbedForm, files="files") as form:
            if not form.files and not form.fields.texts:
                raise Invalid("The form has neither files nor texts.")
            options = form.fields
            outcomes = await each_file(form.files, lambda upload: _recording(services, upload))
    else:
        options = EmbedForm(**(await bodies.read_json(request, EmbedTexts)).model_dump())
    failed = shapes.file_errors(outcomes)
    texts = await services.engine.embed_texts(options.texts)

    def answer() -> bytes:
        answered = Embeddings(
            model=services.engine.name,
            dim=services.engine.dim,
            audio=[_audio(r, options) for r in outcomes if not isinstance(r, Failure)],
            texts=[
                TextEmbedding.model_construct(text=text, embedding=shapes.vectors(vector, options.encoding))
                for text, vector in zip(options.texts, texts, strict=True)
            ],
            errors=failed,
        )
        return answered.model_dump_json().encode()

    long = options.frames or len(outcomes) + len(options.texts) > _SHORT
    return Response(await services.compute(answer) if long else answer(), media_type="application/json")


async def _recording(services: Services, upload: Upload) -> Recording:
    return await services.embed_file(upload.binary, upload.filename)


def _audio(recording: Recording, options: EmbedForm) -> AudioEmbedding:
    frames = None
    if options.frames:
        frames = FrameEmbeddings.model_construct(
            hop=recording.frame_hop, embeddings=shapes.vectors(recording.frames, options.encoding)
        )
    return AudioEmbedding.model_construct(
        filename=recording.filename,
        duration=recording.duration,
        embedding=shapes.vectors(recording.clip, options.encoding),
        frames=frames,
    )
