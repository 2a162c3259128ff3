"""POST /detect and POST /classify: what is heard in a recording, and when."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from app import errors
from app.api import examples, openapi, schemas
from app.api import requests as bodies
from app.api.requests import Form
from app.api.schemas import Classification, ClassifyForm, DetectForm, Label
from app.audio.peaks import Envelope
from app.audio.spectrogram import Sketch
from app.decoding.pool import DecodedStream
from app.errors import Invalid
from app.export import formats
from app.services.audio_source import Hearing, Pen
from app.services.detection import Drawing, Question, detect_events, draw, follow_events, to_answer
from app.state import Services, Serving
from model.detection import DetectionSettings

router = APIRouter(tags=["detection"])

_WRITERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "json": functools.partial(json.dumps, ensure_ascii=False),
    "csv": formats.to_csv,
    "audacity": formats.to_audacity,
    "raven": formats.to_raven,
}
_MEDIA_TYPES = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "audacity": "text/plain; charset=utf-8",
    "raven": "text/plain; charset=utf-8",
}
_NDJSON = "application/x-ndjson"


@router.post(
    "/detect",
    summary="Sound events in a recording",
    response_model=schemas.Detection,
    responses={
        200: {
            "content": {
                "application/json": {"example": examples.DETECTION},
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "text/csv": {"schema": {"type": "string"}, "example": examples.DETECTION_CSV},
                "text/plain": {"schema": {"type": "string"}, "example": examples.DETECTION_LABELS},
                _NDJSON: {"schema": {"type": "string"}, "example": examples.DETECTION_LINES},
            }
        },
        **openapi.problems(*openapi.ALWAYS, 404, 415),
    },
    openapi_extra=openapi.body(
        form=DetectForm,
        file="file",
        form_example={"file": "(a sound file)", "phrases": ["dog barking", "rain"], "threshold": [0.5]},
    ),
)
async def detect(request: Request, services: Serving) -> Response:
    """Listens for each phrase in a file or in a clip of the library.

    `csv` has a row for each event, `audacity` is a label track, `raven` a selection table, `png` a picture of scores
    and events. `ndjson` is a stream of lines, each a JSON object with a `type`: `start`, `event` as soon as nothing
    that follows can change it, `progress` about once a second, `frames` if they are wanted, `outline` with what it
    takes to draw the recording if that is wanted, and `end` with all that the format json has; where the recording
    turns out to be broken the last line is an `error` with its problem.
    """
    async with contextlib.AsyncExitStack() as stack:
        form = await stack.enter_async_context(bodies.open_form(request, DetectForm, files="file"))
        options = form.fields
        _check_count(services, options.phrases, "phrases")
        question = _question(options)
        texts = await services.engine.embed_texts(options.phrases)
        streamed, picture = options.format == "ndjson", options.format == "png"
        sketch = Sketch(options.outline_step) if streamed and options.outline else None
        pen = Envelope() if picture else sketch
        hearing, sound = await _listen(services, form, options.clip_id, stack, pen)
        if streamed:
            lines = follow_events(
                services.engine,
                hearing,
                question,
                texts,
                services.compute,
                frames=options.frames,
                encoding=options.encoding,
                drawing=None if sketch is None else Drawing(sketch, sound),
            )
            first = [await anext(lines), await anext(lines)]  # a file that cannot be read has an error's status
            return _Lines(_written(first, lines, stack.pop_all()), media_type=_NDJSON)
        result = await detect_events(services.engine, hearing, question, texts, services.compute)
        if isinstance(pen, Envelope):
            if sound is not None:
                async for block in sound:
                    pen.push(block)
            return Response(await services.compute(draw, result, pen.levels(), question), media_type="image/png")
    text = await services.compute(lambda: _WRITERS[options.format](to_answer(result, options.frames, options.encoding)))
    return Response(text, media_type=_MEDIA_TYPES[options.format])


@router.post(
    "/classify",
    summary="Which of these labels fits?",
    responses=openapi.example(examples.CLASSIFICATION, openapi.problems(*openapi.ALWAYS, 404, 415)),
    openapi_extra=openapi.body(
        form=ClassifyForm, file="file", form_example={"file": "(a sound file)", "labels": ["dog", "cat"]}
    ),
)
async def classify(request: Request, services: Serving) -> Classification:
    """Scores each label, put into the template, for a whole file or clip."""
    async with bodies.open_form(request, ClassifyForm, files="file") as form:
        options = form.fields
        _check_count(services, options.labels, "labels")
        if options.template.count("{}") != 1:
            raise Invalid("The template must have {} once, where the label goes.")
        async with contextlib.AsyncExitStack() as stack:
            hearing, _ = await _listen(services, form, options.clip_id, stack)
            async for _ in hearing:
                pass
            clip = hearing.clip
    texts = await services.engine.embed_texts([options.template.replace("{}", label) for label in options.labels])
    scores = services.engine.clip_score(clip[None], texts)[0].tolist()
    probabilities = services.engine.label_probabilities(clip, texts).tolist()
    labels = [
        Label(label=label, score=round(score, 6), probability=round(probability, 6))
        for label, score, probability in zip(options.labels, scores, probabilities, strict=True)
    ]
    return Classification(labels=sorted(labels, key=lambda label: -label.probability))


class _Lines(StreamingResponse):
    """A stream whose source is closed as soon as nobody reads it any more."""

    async def stream_response(self, send: Send) -> None:
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with contextlib.aclosing(self.body_iterator):
            await super().stream_response(send)


async def _written(
    first: list[dict[str, Any]], lines: AsyncGenerator[dict[str, Any], None], open_things: contextlib.AsyncExitStack
) -> AsyncGenerator[str, None]:
    """The lines as text; what goes wrong midway is the last one. Closes `open_things` at its end."""
    async with open_things, contextlib.aclosing(lines):
        try:
            for line in first:
                yield json.dumps(line, ensure_ascii=False) + "\n"
            async for line in lines:
                yield json.dumps(line, ensure_ascii=False) + "\n"
        except Exception as error:
            yield json.dumps({"type": "error", "problem": errors.describe(error)}, ensure_ascii=False) + "\n"


async def _listen(
    services: Services,
    form: Form[DetectForm] | Form[ClassifyForm],
    clip_id: str | None,
    stack: contextlib.AsyncExitStack,
    pen: Pen | None = None,
) -> tuple[Hearing, DecodedStream | None]:
    """The file or clip that is asked about; what it opens is closed with `stack`.

    A file is drawn by `pen` while it is heard. Of a clip the frames are remembered, so nothing is decoded for them:
    where there is a pen, its sound comes too, for the pen to draw.
    """
    if len(form.files) + (clip_id is not None) != 1:
        raise Invalid("Give one `file` or one `clip_id`.")
    if clip_id is not None:
        hearing = await services.remember(clip_id)
        return hearing, None if pen is None else await stack.enter_async_context(services.stored(clip_id))
    upload = form.files[0]
    return await stack.enter_async_context(services.hear(upload.binary, upload.filename, pen=pen)), None


def _question(options: DetectForm) -> Question:
    count = len(options.phrases)
    high = _for_each(options.threshold, count, "threshold")
    low = _for_each(options.low_threshold, count, "low_threshold") if options.low_threshold else [None] * count
    try:
        settings = [
            DetectionSettings(
                threshold=threshold,
                low_threshold=low_threshold,
                median_filter=options.median_filter,
                min_duration=options.min_duration,
                max_gap=options.max_gap,
                method=options.method,
            )
            for threshold, low_threshold in zip(high, low, strict=True)
        ]
    except ValueError as error:
        raise Invalid(str(error)) from error
    return Question(options.phrases, settings)


def _for_each(values: list[float], count: int, name: str) -> list[float]:
    if len(values) not in (1, count):
        raise Invalid(f"`{name}` is given {len(values)} times for {count} phrases; give one, or one for each.")
    return values * count if len(values) == 1 else values


def _check_count(services: Services, phrases: list[str], what: str) -> None:
    limit = services.settings.max_phrases
    if len(phrases) > limit:
        raise Invalid(f"{len(phrases)} {what} are more than the limit of {limit}.")
