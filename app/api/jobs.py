"""Jobs: detections over the whole library, from its stored frames, with progress and tables of their events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from app.api import examples, openapi, requests
from app.api.detect import check_count, detection_request
from app.api.requests import Serving
from app.api.schemas import Filter, Score, Seconds, Text
from app.errors import Invalid
from app.export import events, summary
from app.services.jobs import JobOptions, JobRunner, create_job, describe_job, jobs_of
from index import Job
from model.detection import MAX_MEDIAN_FILTER

router = APIRouter(prefix="/jobs", tags=["jobs"])

_PROBLEMS = (*openapi.ALWAYS, 501)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


_SCORE = {"type": "number", "minimum": 0, "maximum": 1}
Scores = Annotated[
    list[Score],
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _SCORE, "minItems": 1}, _SCORE]}),
]


class JobRequest(BaseModel):
    """JSON body of POST /jobs: a detection, with the options of POST /detect."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["detect"] = "detect"
    phrases: list[Text] = Field(
        min_length=1, description="Descriptions of the sounds to detect.", examples=[["dog barking", "speech"]]
    )
    filter: Filter | None = Field(None, description="Only clips that pass it, as in POST /search; default: all clips.")
    threshold: Scores | None = Field(
        None,
        min_length=1,
        description="The score that an event reaches: a number, or a list with one per phrase. "
        "Default: 0.5, or what was set for a concept.",
    )
    low_threshold: Scores | None = Field(
        None,
        description="An event lasts while its score stays above this value: a number, or a list with one per phrase. "
        "Default: it follows the highest score of each event.",
    )
    method: Literal["threshold", "sebb"] = Field(
        "threshold", description="How scores become events. sebb: sound event bounding boxes, by change detection."
    )
    median_filter: float = Field(
        0.48, ge=0, le=MAX_MEDIAN_FILTER, description="Length in seconds of the median filter over the scores."
    )
    min_duration: Seconds = Field(0.0, description="Drop shorter events.")
    max_gap: Seconds = Field(0.2, description="Merge events that are at most this far apart.")


class JobState(BaseModel):
    """A job. `done` of `total` clips are scored, `reused` of them by an earlier job; `seconds` is their audio.

    Clips that were added after the job began don't belong to it. Clips that are deleted count as done, and their
    events are removed. Then come the request's own values, and the checkpoint that embeds the phrases.
    """

    id: str
    kind: Literal["detect"]
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    done: int
    total: int
    events: int
    reused: int
    seconds: float
    error: str | None = None
    created: str
    started: str | None = None
    ended: str | None = None
    phrases: list[str]
    filter: dict[str, Any] | None = None
    threshold: list[float]
    low_threshold: list[float | None]
    method: Literal["threshold", "sebb"]
    median_filter: float
    min_duration: float
    max_gap: float
    checkpoint: str


class JobList(BaseModel):
    """All jobs, newest first."""

    jobs: list[JobState]


class PhraseSummary(BaseModel):
    """The events of a phrase, their seconds, and the number of clips that have any."""

    phrase: str
    events: int
    duration: float
    clips: int


class HourSummary(BaseModel):
    """An hour of local time with the seconds recorded in it; events and their seconds are in the phrases' order."""

    hour: str
    seconds: float
    events: list[int]
    durations: list[float]


class ClipSummary(BaseModel):
    """A clip with its seconds and its start, if known; events and their seconds are in the phrases' order."""

    clip_id: str
    filename: str
    time: str | None = None
    seconds: float
    events: list[int]
    durations: list[float]


class JobSummary(BaseModel):
    """`phrases` with their events by phrase; else their texts, with `hours` (and clips of unknown time) or `clips`."""

    by: Literal["phrase", "clip", "hour"]
    phrases: list[PhraseSummary] | list[str]
    undated: int | None = None
    hours: list[HourSummary] | None = None
    clips: list[ClipSummary] | None = None


class EventsQuery(BaseModel):
    """Query parameters of GET /jobs/{id}/events."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["csv", "parquet", "raven", "audacity", "ndjson"] = Field(
        "csv", description="audacity: a ZIP archive with a label track for each clip that has events."
    )


class SummaryQuery(BaseModel):
    """Query parameters of GET /jobs/{id}/summary."""

    model_config = ConfigDict(extra="forbid")

    by: Literal["phrase", "clip", "hour"] = Field(
        "phrase", description="hour: of local time, for clips that tell their start."
    )
    format: Literal["json", "csv", "png"] = Field("json", description="png: a heat map of days and hours.")


@router.post(
    "",
    summary="Start a job over the library",
    status_code=202,
    response_model=JobState,
    responses=openapi.example(examples.JOB, openapi.problems(*_PROBLEMS, 404, 409, 415, 507), status=202),
    openapi_extra=openapi.body(json=JobRequest, examples=examples.JOB_REQUESTS),
)
async def create(request: Request, state: Serving) -> Response:
    """Queues a detection over all clips, or those that pass `filter`; jobs run one after another, behind requests.

    It scores stored embeddings, never audio, and survives a restart. What an earlier job with the same phrases and
    options has found is taken over, so that the same job again scores only new clips.
    """
    body = await requests.read_json(request, JobRequest)
    check_count(state, body.phrases, "phrases")
    job = await create_job(state, JobOptions(detection_request(body), body.filter))
    _runner(request).wake()
    return JSONResponse(_described(job).model_dump(), 202, {"Location": f"/jobs/{job.id}"})


@router.get("", summary="List jobs", responses=openapi.example(examples.JOBS, openapi.problems(*_PROBLEMS)))
async def list_jobs(state: Serving) -> JobList:
    """Lists the jobs, newest first."""
    return JobList(jobs=[_described(job) for job in await state.read(jobs_of(state).list)])


@router.get(
    "/{job_id}", summary="Get a job", responses=openapi.example(examples.JOB, openapi.problems(*_PROBLEMS, 404))
)
async def get(job_id: str, state: Serving) -> JobState:
    """Returns a job's state and progress."""
    return _described(await state.read(jobs_of(state).get, job_id))


@router.delete(
    "/{job_id}",
    summary="Cancel or delete a job",
    response_model=JobState,
    responses={
        **openapi.example(examples.JOB, openapi.problems(*_PROBLEMS, 404, 507)),
        204: {"description": "The job was finished; it and its events are deleted"},
    },
)
async def delete(job_id: str, request: Request, state: Serving) -> Response:
    """Cancels a job that is queued or running, and returns it; its events so far are kept. Deletes a finished one."""
    job = await _runner(request).delete(job_id)
    return Response(status_code=204) if job is None else JSONResponse(_described(job).model_dump())


@router.get(
    "/{job_id}/events",
    summary="Get a job's events",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {
                "text/csv": {"schema": {"type": "string"}, "example": examples.JOB_CSV},
                "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
                "application/zip": {"schema": {"type": "string", "format": "binary"}},
                "application/x-ndjson": {"schema": {"type": "string"}, "example": examples.JOB_LINES},
                "text/plain": {"schema": {"type": "string"}},
            },
            "description": "The events, clip by clip in the order in which the clips were added",
        },
        **openapi.problems(*_PROBLEMS, 404),
    },
)
async def job_events(job_id: str, state: Serving, query: Annotated[EventsQuery, Query()]) -> Response:
    """Returns the events found so far; all of them once the job is done."""
    jobs = jobs_of(state)
    job = await state.read(jobs.get, job_id)
    pieces = events.WRITERS[query.format](jobs.results(job_id), job.request["phrases"])
    return _download(pieces, events.MEDIA_TYPES[query.format], f"events-{job_id[:8]}{events.SUFFIXES[query.format]}")


@router.get(
    "/{job_id}/summary",
    summary="Summarise a job's events",
    response_model=JobSummary,
    responses={
        200: {
            "content": {
                "application/json": {"example": examples.JOB_SUMMARY},
                "text/csv": {"schema": {"type": "string"}},
                "image/png": {"schema": {"type": "string", "format": "binary"}},
            },
            "description": "Numbers of events and their total seconds, for each phrase",
        },
        **openapi.problems(*_PROBLEMS, 404),
    },
)
async def job_summary(job_id: str, state: Serving, query: Annotated[SummaryQuery, Query()]) -> Response:
    """Counts the events and their seconds: of each phrase, in each clip, or in each hour with recordings.

    A clip's start is known from its metadata (`start_time`, or `date` and `time`, which `bext` fills) or its file name,
    as recorders write it: 20240131_054500.WAV.
    """
    if query.by != "hour" and query.format == "png":
        raise Invalid("The heat map is of hours: use by=hour.")
    jobs = jobs_of(state)
    job = await state.read(jobs.get, job_id)
    phrases, results = job.request["phrases"], jobs.results(job_id)
    if query.by == "hour":
        hours = await state.compute(summary.by_hour, results, phrases)
        if query.format == "png":
            return Response(await state.compute(summary.hours_png, hours, phrases), media_type="image/png")
        pieces = (summary.hours_csv if query.format == "csv" else summary.hours_json)(hours, phrases)
    elif query.by == "clip":
        pieces = (summary.clips_csv if query.format == "csv" else summary.clips_json)(results, phrases)
    else:
        pieces = (summary.phrases_csv if query.format == "csv" else summary.phrases_json)(results, phrases)
    if query.format == "csv":
        return _download(pieces, events.MEDIA_TYPES["csv"], f"summary-{job_id[:8]}.csv")
    return StreamingResponse(_joined(pieces), media_type="application/json")


def _runner(request: Request) -> JobRunner:
    runner: JobRunner = request.app.state.jobs
    return runner


def _described(job: Job) -> JobState:
    return JobState(**describe_job(job))


def _download(pieces: Iterator[bytes], media_type: str, filename: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{filename}"'}
    return StreamingResponse(_joined(pieces), media_type=media_type, headers=headers)


def _joined(pieces: Iterator[bytes], least: int = 1 << 16) -> Iterator[bytes]:
    """The pieces, small ones joined: each is a switch to a thread and back."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        if len(buffer) >= least:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)
