"""Concepts: teach a sound with examples, and see, change, export and delete what was taught."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

import index
from app.api import concept_schemas as schemas
from app.api import examples, openapi, requests, responses
from app.api.requests import Form, Serving
from app.audio.containers import media_type
from app.errors import Invalid
from app.export import labels
from app.services import concepts
from app.services.concepts import Stretch, Taught
from app.services.suggestions import suggest

router = APIRouter(prefix="/concepts", tags=["concepts"])

_FILES = ("positive", "negative")
_LABEL_FILES = ("file", "labels")


@router.post(
    "",
    summary="Teach a concept",
    status_code=201,
    response_model=schemas.TaughtConcept,
    responses=openapi.example(
        examples.CONCEPT | {"errors": []}, openapi.problems(*openapi.ALWAYS, 404, 409, 415, 507), status=201
    ),
    openapi_extra=openapi.body(
        json=schemas.NewConcept,
        examples=examples.NEW_CONCEPTS,
        form=schemas.NewConceptForm,
        file=_FILES,
        many=True,
        form_example={"name": "our door bell", "positive": ["(an audio file)"]},
    ),
)
async def create(request: Request, state: Serving) -> schemas.TaughtConcept:
    """Teaches a sound with a text, with clips of the library or stretches of them, or with files.

    With a 201 response the examples are durable and the concept is fitted: `concept:NAME` stands wherever a phrase or a
    query does. Files that fail are listed in `errors`, and the others are kept.
    """
    if requests.media_type_of(request) not in requests.FORM_TYPES:
        body = await requests.read_json(request, schemas.NewConcept)
        taught, failures = await concepts.create(state, body.name, body.text, _stretches(body.examples), [])
    else:
        async with requests.open_form(request, schemas.NewConceptForm, files=_FILES, json_fields=("examples",)) as form:
            fields = form.fields
            files = [(file, name == "positive") for name, file in form.named]
            taught, failures = await concepts.create(
                state, fields.name, fields.text, _stretches(fields.examples), files
            )
    errors = responses.file_errors([*failures, taught])
    return schemas.TaughtConcept(**concept(taught).model_dump(), errors=errors)


@router.get(
    "",
    summary="List concepts",
    responses=openapi.example({"concepts": [examples.CONCEPT]}, openapi.problems(*openapi.ALWAYS)),
)
async def list_concepts(state: Serving) -> schemas.Concepts:
    """Lists all concepts, by name."""
    found = await state.read(state.library.concepts.list)
    return schemas.Concepts(concepts=[concept(await concepts.taught(state, one.id)) for one in found])


@router.get(
    "/{key}",
    summary="Get a concept",
    responses=openapi.example(examples.CONCEPT, openapi.problems(*openapi.ALWAYS, 404)),
)
async def get(key: str, state: Serving) -> schemas.Concept:
    """Returns a concept by its name or id."""
    return concept(await concepts.taught(state, key))


@router.patch(
    "/{key}",
    summary="Rename a concept, or change its text or threshold",
    response_model=schemas.Concept,
    responses=openapi.example(examples.CONCEPT, openapi.problems(*openapi.ALWAYS, 404, 409, 415, 507)),
    openapi_extra=openapi.body(
        json=schemas.ConceptPatch, examples={"rename": {"name": "front door"}, "threshold": {"threshold": 0.3}}
    ),
)
async def change(key: str, request: Request, state: Serving) -> schemas.Concept:
    """Changes the name, the text or the threshold. With another text, the concept is fitted anew.

    A null `text` removes it; with a null `threshold`, the fitted one counts again.
    """
    patch = await requests.read_json(request, schemas.ConceptPatch)
    text = (patch.text or "") if "text" in patch.model_fields_set else None
    threshold = (patch.threshold or 0.0) if "threshold" in patch.model_fields_set else None
    taught = await concepts.taught(state, key)
    if text == "" and not taught.positives:
        raise Invalid("Without its text, the concept would have neither a text nor a positive example.")
    update = state.library.concepts.update
    changed = await state.write(lambda: update(taught.concept.id, name=patch.name, text=text, threshold=threshold))
    return concept(await concepts.taught(state, changed.id))


@router.delete("/{key}", summary="Delete a concept", status_code=204, responses=openapi.problems(*openapi.ALWAYS, 404))
async def delete(key: str, state: Serving) -> None:
    """Deletes a concept, and the files that came as its examples. Clips stay in the library."""
    await state.write(state.library.concepts.delete, key)


@router.get(
    "/{key}/examples",
    summary="List or export a concept's examples",
    response_model=schemas.ConceptExamples,
    responses={
        200: {
            "content": {
                "application/json": {"example": examples.CONCEPT_EXAMPLES},
                "text/csv": {"schema": {"type": "string"}},
                "text/plain": {"schema": {"type": "string"}},
            }
        },
        **openapi.problems(*openapi.ALWAYS, 404),
    },
)
async def list_examples(key: str, state: Serving, query: Annotated[schemas.ExamplesQuery, Query()]) -> Response:
    """Lists the examples, or exports them as labels: positive ones with the concept's name, others as "not NAME"."""
    found = await state.read(state.library.concepts.get, key)
    every = await state.read(state.library.concepts.examples, found.id)
    chosen = [one for one in every if query.clip_id is None or one.clip_id == query.clip_id]
    if query.format == "json":
        body = schemas.ConceptExamples(examples=[example(one) for one in chosen]).model_dump_json()
        return Response(body, media_type="application/json")
    events = await concepts.as_labels(state, found.name, chosen)
    if query.format != "csv" and len({event.filename for event in events}) > 1:
        raise Invalid("Raven and Audacity describe one recording in a file: choose one with `clip_id`, or use csv.")
    media_type = "text/csv" if query.format == "csv" else "text/plain"
    return Response(labels.WRITERS[query.format](events), media_type=f"{media_type}; charset=utf-8")


@router.post(
    "/{key}/examples",
    summary="Add examples",
    status_code=201,
    response_model=schemas.TaughtExamples,
    responses=openapi.example(
        examples.TAUGHT_EXAMPLES, openapi.problems(*openapi.ALWAYS, 404, 409, 415, 507), status=201
    ),
    openapi_extra=openapi.body(
        json=schemas.AddedExamples,
        examples=examples.NEW_EXAMPLES,
        form=schemas.ExamplesForm,
        file=(*_FILES, "file"),
        many=True,
        form_example={"positive": ["(an audio file)"]},
    ),
)
async def add_examples(key: str, request: Request, state: Serving) -> schemas.TaughtExamples:
    """Adds clips, stretches of clips, files, or the labels in a `file` of Raven, Audacity or DCASE, and fits anew.

    In a label file, rows with the concept's name or text, or with the given `label`, are positive examples, and rows
    with "not " before it are negative; others are skipped. `clip_id` is the clip that the file describes; rows of csv
    may name clips by file name instead.
    """
    skipped = 0
    if requests.media_type_of(request) not in requests.FORM_TYPES:
        body = await requests.read_json(request, schemas.AddedExamples)
        added, failures = await concepts.add_examples(state, key, _stretches(body.examples), [])
    else:
        async with requests.open_form(
            request, schemas.ExamplesForm, files=(*_FILES, *_LABEL_FILES), json_fields=("examples",)
        ) as form:
            stretches = _stretches(form.fields.examples)
            labelled, skipped = await _read_labels(state, key, request, form)
            files = [(file, name == "positive") for name, file in form.named if name in _FILES]
            if not (stretches or labelled or files):
                raise Invalid("Provide `examples`, files in `positive` or `negative`, or a label file in `file`.")
            added, failures = await concepts.add_examples(state, key, [*stretches, *labelled], files)
    errors = responses.file_errors([*failures, *added])
    return schemas.TaughtExamples(
        examples=[example(one) for one in added],
        concept=concept(await concepts.taught(state, key)),
        errors=errors,
        skipped=skipped,
    )


@router.delete(
    "/{key}/examples/{example_id}",
    summary="Delete an example",
    status_code=204,
    responses=openapi.problems(*openapi.ALWAYS, 404),
)
async def delete_example(key: str, example_id: str, state: Serving) -> None:
    """Deletes an example, with the file that it came as. The concept is fitted anew."""
    await state.write(state.library.concepts.delete_example, key, example_id)
    await concepts.taught(state, key)


@router.get(
    "/{key}/examples/{example_id}/audio",
    summary="Get the file that an example came as",
    response_class=Response,
    responses={
        200: {"content": {"audio/*": {}}, "description": "The file as it was uploaded"},
        **openapi.problems(*openapi.ALWAYS, 404),
    },
)
async def example_audio(key: str, example_id: str, state: Serving) -> Response:
    """Returns the uploaded file of an example. An example of a clip has none: get that of its clip."""
    audio = await state.read(state.library.concepts.audio, key, example_id)
    return Response(audio, media_type=media_type(audio[:16]))


@router.get(
    "/{key}/suggestions",
    summary="Suggest moments to label",
    responses=openapi.example(examples.SUGGESTIONS, openapi.problems(*openapi.ALWAYS, 404, 409)),
)
async def suggestions(
    key: str, state: Serving, query: Annotated[schemas.SuggestionsQuery, Query()]
) -> schemas.Suggestions:
    """Suggests moments of the library whose label would teach most: uncertain ones that differ from each other."""
    found = await suggest(state, key, query.k)
    return schemas.Suggestions(
        suggestions=[
            schemas.Suggestion(
                clip=responses.clip(one.clip),
                start=round(one.start, 3),
                end=round(one.end, 3),
                score=round(one.score, 6),
            )
            for one in found
        ]
    )


# Conversions


def concept(taught: Taught) -> schemas.Concept:
    """A concept as the API describes it."""
    head, notes = taught.head, []
    if head is None:
        notes.append("there is neither a text nor a positive example")
    elif head.reason:
        notes.append(head.reason)
    if taught.removed:
        gone = "1 example was removed with its clip"
        several = f"{taught.removed} examples were removed with their clips"
        notes.append(gone if taught.removed == 1 else several)
    quality = None
    if head is not None and head.quality is not None:
        quality = schemas.Quality(
            average_precision=round(head.quality.average_precision, 4),
            auroc=round(head.quality.auroc, 4),
            folds=head.quality.folds,
        )
    return schemas.Concept(
        id=taught.concept.id,
        name=taught.concept.name,
        text=taught.concept.text,
        positives=taught.positives,
        negatives=len(taught.examples) - taught.positives,
        removed=taught.removed,
        quality=quality,
        threshold=round(taught.threshold, 4),
        threshold_set=taught.concept.threshold is not None,
        notes=notes,
        created=taught.concept.created,
        updated=taught.concept.updated,
    )


def example(one: index.ConceptExample) -> schemas.ConceptExample:
    """An example as the API describes it."""
    return schemas.ConceptExample(
        id=one.id,
        label=one.label,
        clip_id=one.clip_id,
        filename=one.filename,
        start=one.start,
        end=one.end,
        created=one.created,
    )


def _stretches(given: list[schemas.NewExample]) -> list[Stretch]:
    return [Stretch(one.clip_id, one.start, one.end, one.label) for one in given]


async def _read_labels(
    state: Any, key: str, request: Request, form: Form[schemas.ExamplesForm]
) -> tuple[list[Stretch], int]:
    """The examples in a form's label file, and how many of its rows are about other sounds."""
    files = [file for name, file in form.named if name in _LABEL_FILES]
    format = form.fields.format or request.query_params.get("format")
    if not files:
        if format is not None:
            raise Invalid("`format` describes a label file, which belongs in `file`.")
        return [], 0
    if len(files) > 1 or format not in labels.READERS:
        raise Invalid("Provide one label file in `file`, and its `format`: raven, audacity or csv.")
    content = await state.compute(labels.read_file, files[0].binary)
    try:
        rows = labels.READERS[format](content)
    except ValueError as error:
        raise Invalid(f"{files[0].filename}: {error}") from error
    clip_id = form.fields.clip_id or request.query_params.get("clip_id")
    return await concepts.from_labels(state, key, rows, clip_id, form.fields.label)
