"""The OpenAPI document beyond the routes' signatures: JSON and form bodies, problems, examples, authentication.

Routes declare these with `problems`, `body` and `example`, because they read their bodies with app.api.requests.
`describe` moves every inline schema to the document's components.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.api.schemas import Problem
from app.errors import PROBLEM_JSON, TYPE_PREFIX

_SCHEMAS = "#/components/schemas/"

_PROBLEMS = {
    400: ("Malformed request", "malformed", "the body is not valid JSON: Expecting value: line 1 column 1 (char 0)"),
    401: ("Missing or wrong API key", "unauthorized", "The API key is invalid."),
    403: (
        "Cross-origin request",
        "cross-origin",
        "Requests from this origin are not allowed; FINELAP_CORS_ORIGINS lists the allowed origins.",
    ),
    404: ("Not found", "clip-not-found", "no clip has the id '3f9a'"),
    405: ("Method not allowed; see Allow", "method-not-allowed", "Method Not Allowed"),
    409: ("Conflict", "concept-exists", "a concept named 'door bell' exists already"),
    413: ("Too large or too long", "audio-too-long", "day.wav: it is longer than the limit of 14400 s."),
    414: ("URI too long", "address-too-long", "The URL has 70011 bytes; the limit is 32768."),
    415: (
        "Not audio that can be decoded, or a body of the wrong type",
        "not-audio",
        "notes.wav: this is not an audio file that can be decoded (Invalid data found when processing input).",
    ),
    416: ("Range not satisfiable", "range-not-satisfiable", "The file has 31044 bytes."),
    421: (
        "Host name not allowed",
        "misdirected",
        "The Host header does not name this service; FINELAP_ALLOWED_HOSTS lists the names it accepts.",
    ),
    422: ("Invalid value", "invalid-value", "k: Input should be greater than or equal to 1"),
    429: ("Queue full; see Retry-After", "queue-full", "The audio queue is full; try again in 2 s."),
    500: (
        "Internal error",
        "internal-error",
        "An unexpected error occurred. The log has the details under this request id.",
    ),
    501: (
        "Not supported by this library",
        "jobs-unsupported",
        "jobs need a library in SQLite (FINELAP_INDEX_URL=faiss://); this one is in Milvus",
    ),
    503: ("Not ready, shutting down, or timed out; see Retry-After", "not-ready", "The model is loading."),
    507: ("No space left in storage", "storage-full", "no space left in data"),
}
ALWAYS = (400, 401, 405, 413, 414, 422, 429, 500, 503)
TAGS = [
    {"name": name, "description": description}
    for name, description in {
        "search": "Search by text, by audio and by a clip, and for the best moments.",
        "library": "Add, list, change and delete clips, and get their audio.",
        "detection": "The sound events in a recording, and the labels that fit it.",
        "jobs": "Detections over the whole library, and tables of their events.",
        "concepts": "Sounds that are taught with examples, and stand wherever a phrase does.",
        "embeddings": "Embeddings of audio and texts in a shared space; also compatible with the OpenAI API.",
        "health": "Liveness and readiness probes; no API key required.",
        "service": "Model, limits and metrics.",
    }.items()
]
_HEADERS = {
    "X-Request-ID": {
        "description": "Identifies the request in this response, in problems and in the log.",
        "schema": {"type": "string"},
    }
}
_MORE_HEADERS = {
    401: {"WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}}},
    405: {"Allow": {"description": "The supported methods.", "schema": {"type": "string"}}},
    416: {"Content-Range": {"description": "`bytes */` and the size of the file.", "schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "string"}}},
    503: {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "string"}}},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: problems with these statuses."""
    return {status: _problem(status) for status in sorted(statuses)}


def _problem(status: int) -> dict[str, Any]:
    description, slug, detail = _PROBLEMS[status]
    problem = Problem(
        type=TYPE_PREFIX + slug, title=description.split(";")[0], status=status, detail=detail, request_id="5b1c0f3e"
    )
    content = {"schema": {"$ref": _SCHEMAS + "Problem"}, "example": problem.model_dump()}
    return {"description": description, "content": {PROBLEM_JSON: content}, "headers": _MORE_HEADERS.get(status, {})}


def example(value: Any, *more: dict[int | str, dict[str, Any]], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: an example of its response, and the other `responses` in `more`."""
    merged: dict[int | str, dict[str, Any]] = {status: {"content": {"application/json": {"example": value}}}}
    for responses in more:
        merged.update(responses)
    return merged


def body(
    *,
    json: type[BaseModel] | None = None,
    form: type[BaseModel] | None = None,
    file: str | tuple[str, ...] = "",
    many: bool = False,
    examples: dict[str, Any] | None = None,
    form_example: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself: JSON, a form with the file field(s) `file`, or both.

    `examples`: name → JSON body; `form_example`: an example form. Form fields that are objects are sent as JSON text.
    """
    content: dict[str, Any] = {}
    if json is not None:
        content["application/json"] = {"schema": _schema(json)}
        if examples:
            content["application/json"]["examples"] = {name: {"value": value} for name, value in examples.items()}
    if form is not None:
        schema = _schema(form)
        binary: dict[str, Any] = {"type": "string", "format": "binary"}
        field = {"type": "array", "items": binary} if many else binary
        fields = schema.get("properties", {})
        schema["properties"] = dict.fromkeys((file,) if isinstance(file, str) else file, field) | fields
        described: dict[str, Any] = {"schema": schema}
        as_json = {
            name: {"contentType": "application/json"}
            for name, field_schema in fields.items()
            if _is_object(field_schema)
        }
        if as_json:
            described["encoding"] = as_json
        if form_example:
            described["example"] = form_example
        content["multipart/form-data"] = described
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The app's OpenAPI document, generated once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
        )
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
        for calls in document["paths"].values():
            for method, call in calls.items():
                for content in call.get("requestBody", {}).get("content", {}).values():
                    content["schema"] = _to_component(content["schema"], schemas)
                if method not in ("get", "head"):
                    call["responses"].setdefault("403", _problem(403))
                call["responses"].setdefault("421", _problem(421))
                call["responses"] = dict(sorted(call["responses"].items()))
                for response in call["responses"].values():
                    response["headers"] = {**_HEADERS, **response.get("headers", {})}
        # FastAPI adds these for its own validation errors, which are problems here
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        components["schemas"] = dict(sorted(schemas.items()))
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"header": []}, {}]
        app.openapi_schema = document
    return app.openapi_schema


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template=_SCHEMAS + "{model}")


def _to_component(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Moves an inline schema and its definitions to the components; returns a reference to it."""
    if "title" not in schema:
        return schema
    schemas.update(schema.pop("$defs", {}))
    name = schema["title"]
    if schemas.setdefault(name, schema) != schema:
        raise ValueError(f"two request models have the name {name}")
    return {"$ref": _SCHEMAS + name}


def _is_object(schema: dict[str, Any]) -> bool:
    """Whether a form field can be a JSON object and is therefore sent as JSON."""
    return schema.get("type") == "object" or any(_is_object(option) for option in schema.get("anyOf", []))


def operation_id(route: APIRoute) -> str:
    """`post_search_moments` for POST /search/moments: names that generated clients can use."""
    method = min(route.methods or ())  # each route has one
    words = [word.strip("{}") for word in route.path_format.split("/") if word]
    return "_".join([method.lower(), *(word.replace("-", "_").split(":")[0] for word in words)])
