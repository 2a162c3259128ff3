"""POST /detect and POST /classify: the sound events in a recording, and the labels that fit it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal, Protocol

from fastapi import APIRouter, Request, Response

from app import errors
from app.api import examples, openapi, requests, responses, schemas
from app.api.requests import Form, Serving
from app.api.schemas import Classification, ClassifyForm, DetectForm, Label
from app.errors import Invalid
from app.export import formats
from app.services import detection
from app.services.audio_source import AudioSource, open_source
from app.services.detection import DetectionRequest, Message, StreamOptions
from app.services.phrases import concept_name, resolve
from app.state import AppState
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
    summary="Detect sound events",
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
        **openapi.problems(*openapi.ALWAYS, 404, 409, 415),
    },
    openapi_extra=openapi.body(
        form=DetectForm,
        file="file",
        form_example={"file": "(an audio file)", "phrases": ["dog barking", "rain"], "threshold": [0.5]},
    ),
)
async def detect(request: Request, state: Serving) -> Response:
    """Detects the sounds that the phrases describe, in a file or in a clip of the library.

    Formats: `csv` has a row per event, `audacity` is a label track, `raven` a selection table, `png` a plot of scores
    and events. `ndjson` streams JSON objects with a `type`: `start`; `event`, as soon as an event is final; `progress`,
    about once a second; `frames` and `outline`, if requested; and `end`, with the content of the json format. If
    decoding fails midway, the last line is an `error` with its problem.
    """
    async with contextlib.AsyncExitStack() as stack:
        form = await stack.enter_async_context(requests.open_form(request, DetectForm, files="file"))
        options = form.fields
        check_count(state, options.phrases, "phrases")
        wanted = detection_request(options)
        source = _source(form, options.clip_id)
        if options.format == "ndjson":
            outline_step = options.outline_step if options.outline else None
            stream_options = StreamOptions(options.frames, options.encoding, outline_step)
            messages = detection.detect_stream(state, source, wanted, stream_options)
            first = [await anext(messages), await anext(messages)]  # a file that cannot be read gets an error status
            return responses.ClosingStreamingResponse(
                _write_lines(first, messages, stack.pop_all()), media_type=_NDJSON
            )
        if options.format == "png":
            return Response(await detection.detect_plot(state, source, wanted), media_type="image/png")
        result = await detection.detect(state, source, wanted)

    def write() -> str:
        return _WRITERS[options.format](detection.to_response(result, options.frames, options.encoding))

    return Response(await state.compute(write), media_type=_MEDIA_TYPES[options.format])


@router.post(
    "/classify",
    summary="Classify a recording",
    responses=openapi.example(examples.CLASSIFICATION, openapi.problems(*openapi.ALWAYS, 404, 409, 415)),
    openapi_extra=openapi.body(
        form=ClassifyForm, file="file", form_example={"file": "(an audio file)", "labels": ["dog", "cat"]}
    ),
)
async def classify(request: Request, state: Serving) -> Classification:
    """Scores each label, inserted into the template, against a whole file or clip."""
    async with requests.open_form(request, ClassifyForm, files="file") as form:
        options = form.fields
        check_count(state, options.labels, "labels")
        if options.template.count("{}") != 1:
            raise Invalid("The template must contain {} exactly once, in the place of the label.")
        async with open_source(state, _source(form, options.clip_id)) as stream:
            async for _ in stream:
                pass
    clip = stream.embedding
    phrases = await resolve(
        state,
        [label if concept_name(label) else options.template.replace("{}", label) for label in options.labels],
    )
    scores, probabilities = phrases.clip_score(clip).tolist(), phrases.probabilities(clip).tolist()
    labels = [
        Label(label=label, score=round(score, 6), probability=round(probability, 6))
        for label, score, probability in zip(options.labels, scores, probabilities, strict=True)
    ]
    return Classification(
        labels=sorted(labels, key=lambda label: -label.probability),
        track=responses.track(stream.track),
        notes=responses.notes(stream.notes),
    )


class EventOptions(Protocol):
    """What DetectForm and a job's request say about events."""

    phrases: list[str]
    threshold: Any  # list[float], or None
    low_threshold: Any  # likewise
    median_filter: float
    min_duration: float
    max_gap: float

    @property
    def method(self) -> Literal["threshold", "sebb"]: ...


async def _write_lines(
    first: list[Message], messages: AsyncGenerator[Message, None], resources: contextlib.AsyncExitStack
) -> AsyncGenerator[str, None]:
    """The messages as NDJSON lines; an error on the way becomes the last one. Closes `resources` at the end."""
    async with resources, contextlib.aclosing(messages):
        try:
            for message in first:
                yield json.dumps(message, ensure_ascii=False) + "\n"
            async for message in messages:
                yield json.dumps(message, ensure_ascii=False) + "\n"
        except Exception as error:
            yield json.dumps({"type": "error", "problem": errors.describe(error)}, ensure_ascii=False) + "\n"


def _source(form: Form[DetectForm] | Form[ClassifyForm], clip_id: str | None) -> AudioSource:
    if len(form.files) + (clip_id is not None) != 1:
        raise Invalid("Provide either one `file` or one `clip_id`.")
    return form.files[0] if clip_id is None else clip_id


def detection_request(options: EventOptions) -> DetectionRequest:
    """The phrases with their settings. Raises Invalid."""
    count = len(options.phrases)
    high = _for_each(options.threshold or [0.5], count, "threshold")
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
    return DetectionRequest(options.phrases, settings, own_thresholds=not options.threshold)


def _for_each(values: list[float], count: int, name: str) -> list[float]:
    if len(values) not in (1, count):
        raise Invalid(f"`{name}` has {len(values)} values for {count} phrases; provide one, or one per phrase.")
    return values * count if len(values) == 1 else values


def check_count(state: AppState, phrases: list[str], what: str) -> None:
    """Raises Invalid if there are more phrases or labels than the service allows."""
    limit = state.settings.max_phrases
    if len(phrases) > limit:
        raise Invalid(f"{len(phrases)} {what} are more than the limit of {limit}.")
