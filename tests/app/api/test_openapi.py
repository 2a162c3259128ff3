"""The OpenAPI document against the service: every operation with generated values, valid and invalid ones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

# per operation and kind; raise it and change the seed for a longer run
EXAMPLES = int(os.environ.get("FINELAP_OPENAPI_EXAMPLES", "12"))
SEED = int(os.environ.get("FINELAP_OPENAPI_SEED", "0"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]
METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    return (await client.get("/openapi.json")).json()


@pytest.fixture
def address(run_server: Callable[..., str], referenced: Path) -> str:
    """The address of a running service."""
    return run_server(reference_roots=(referenced.parent,))


@pytest.fixture
def referenced(tmp_path: Path, sounds: SimpleNamespace) -> Path:
    """A file that clips may refer to."""
    (tmp_path / "sounds").mkdir()
    file = tmp_path / "sounds" / "a.wav"
    file.write_bytes(sounds.wav(1600, 0.5))
    return file


class Library:
    """A few clips to request, added again when a generated call has deleted them."""

    def __init__(self, address: str, sounds: SimpleNamespace) -> None:
        self.files = [("files", (f"{hz}.wav", sounds.wav(hz, 0.5))) for hz in sounds.TONES]
        self.example = sounds.wav(800, 0.7)
        self.http = httpx.Client(base_url=address, timeout=60)

    def ids(self) -> list[str]:
        answer = self.http.post("/clips", files=self.files)
        assert answer.status_code in (200, 201), answer.text
        return [clip["id"] for clip in answer.json()["clips"]]

    def job(self) -> str:
        """The id of a job, made again when a generated call has deleted it."""
        jobs = self.http.get("/jobs").json()["jobs"]
        return str((jobs or [self.http.post("/jobs", json={"phrases": ["tone 400"]}).json()])[0]["id"])

    def collection(self) -> str:
        """A collection with a clip in it, made again when a generated call has renamed or deleted it."""
        edit = {"clip_ids": self.ids()[:1], "add": {"collections": ["storm"]}}
        answer = self.http.post("/clips/edit", json=edit)
        assert answer.status_code == 200, answer.text
        return "storm"

    def concept(self) -> tuple[str, str]:
        """The name of a concept, and its example that came as a file."""
        self.http.post("/concepts", data={"name": "taught", "text": "tone 800"})  # unless it is there
        answer = self.http.post("/concepts/taught/examples", files={"positive": ("example.wav", self.example)})
        assert answer.status_code == 201, answer.text
        return "taught", answer.json()["examples"][0]["id"]


def operations(address: str) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


def test_the_checks_detect_undocumented_behaviour(address: str) -> None:
    document = httpx.get(f"{address}/openapi.json", timeout=60).json()
    search = document["paths"]["/search"]["get"]["responses"]
    del search["422"]
    document["components"]["schemas"]["SearchResult"]["properties"]["took_ms"] = {"type": "string"}
    schema = schemathesis.openapi.from_dict(document)
    for query, fault in (({}, "Undocumented status code"), ({"q": "rain"}, "violates schema")):
        case = schema["/search"]["GET"].Case(query=query)
        with pytest.raises(FailureGroup) as found:
            case.call_and_validate(base_url=address, checks=CHECKS)
        assert fault in str([str(failure) for failure in found.value.exceptions])


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_service_conforms_to_the_document(
    address: str, referenced: Path, sounds: SimpleNamespace, mode: GenerationMode
) -> None:
    library = Library(address, sounds)
    sound = sounds.wav(800, 0.5)
    answered: set[str] = set()

    def make_real(case: Any) -> None:
        """Inserts what generated values never hit: clip ids, the model's name, audio files and their paths."""
        if isinstance(case.body, dict) and "path" in case.body:
            case.body["path"] = str(referenced)
        for name, value in {"clip_id": library.ids()[0], "job_id": library.job(), "model": "fake"}.items():
            if name in (case.path_parameters or {}):
                case.path_parameters[name] = value
        if "/collections/" in case.path:
            case.path_parameters["name"] = library.collection()
        if "key" in (case.path_parameters or {}):
            real = dict(zip(("key", "example_id"), library.concept(), strict=True))
            case.path_parameters |= {name: real[name] for name in real if name in case.path_parameters}
        if isinstance(case.body, dict) and "/concepts" in case.path:
            if "examples" in case.body:
                case.body["examples"] = [{"clip_id": library.ids()[0]}]
            if "name" in case.body:
                case.body["name"] = f"concept {len(case.body)} {sum(map(ord, str(case.body))) % 10_000}"
            if case.media_type == "multipart/form-data":
                for field in ("file", "format", "clip_id", "label", "negative"):
                    case.body.pop(field, None)
                case.body["positive"] = [sound]
        if isinstance(case.body, dict):
            case.body.pop("track", None)  # the sounds have one track
        if isinstance(case.body, dict) and case.path == "/detect":
            for field in ("threshold", "low_threshold"):  # one for each phrase, and in order
                case.body.pop(field, None)
        if isinstance(case.body, dict) and case.path == "/search":
            for field in ("like", "unlike", "filter"):
                case.body.pop(field, None)
            case.body["query"] = "tone 400"
        if isinstance(case.body, dict) and case.media_type == "multipart/form-data":
            for field, file in {"file": sound, "files": [sound]}.items():
                if field in case.body:
                    case.body[field] = file
                    case.body.pop("clip_id", None)
            case.body.pop("template", None)

    for operation in operations(address):
        if mode is GenerationMode.NEGATIVE and not any(map(list, (operation.query, operation.body))):
            continue  # nothing can be invalid

        @seed(SEED)
        @settings(
            max_examples=EXAMPLES,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
        )
        @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
        def check(case: Any, real: bool) -> None:
            if real:
                make_real(case)
            response = case.call_and_validate(base_url=address, checks=CHECKS, timeout=30)
            assert response.headers["x-request-id"]
            if response.status_code < 300:
                answered.add(case.operation.label)

        check()
    if mode is GenerationMode.POSITIVE:
        every = {operation.label for operation in operations(address)}
        assert answered == every, "some operations never got values that succeed"


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


async def test_schemas_are_named_components(document: dict[str, Any]) -> None:
    shapes = document["components"]["schemas"]
    used = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert used == set(shapes), "every schema is used, and every used one is defined"
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            for content in call.get("requestBody", {}).get("content", {}).values():
                assert set(content["schema"]) == {"$ref"}, (path, method)
            for status, response in call["responses"].items():
                for kind, content in response.get("content", {}).items():
                    if "json" in kind and "ndjson" not in kind:
                        assert set(content["schema"]) == {"$ref"}, (path, method, status)


async def test_every_operation_has_a_description_and_examples(document: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    assert all(tag["description"] for tag in document["tags"])
    seen = []
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            where = (method, path)
            seen.append(call["operationId"])
            assert call["summary"] and set(call["tags"]) <= tags, where
            for kind, content in call.get("requestBody", {}).get("content", {}).items():
                assert content.get("example") or content.get("examples"), (*where, kind)
            for status, response in call["responses"].items():
                assert "X-Request-ID" in response["headers"], where
                for kind, content in response.get("content", {}).items():
                    shown = "example" in content or not kind.endswith("json")
                    added = method == "post" and path in ("/clips", "/clips/reference")
                    assert shown or (status == "200" and added), (*where, status, kind)
            assert {"405", "500"} <= set(call["responses"]), where
    assert len(set(seen)) == len(seen)


async def test_the_examples_match_their_schemas(document: dict[str, Any]) -> None:
    count = 0
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            bodies = [call.get("requestBody", {}), *call["responses"].values()]
            for kind, content in (pair for body in bodies for pair in body.get("content", {}).items()):
                examples = [content["example"]] if "example" in content else []
                examples += [named["value"] for named in content.get("examples", {}).values()]
                for example in examples:
                    schema = {**content["schema"], "components": document["components"]}
                    faults = [fault.message for fault in Draft202012Validator(schema).iter_errors(example)]
                    assert not faults, (method, path, kind, faults)
                    count += 1
    assert count > 100


async def test_form_schemas_and_encodings(document: dict[str, Any]) -> None:
    def form(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
        content = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]
        name = content["schema"]["$ref"].rsplit("/", 1)[1]
        return document["components"]["schemas"][name]["properties"], content.get("encoding", {})

    fields, encoding = form("/clips")
    assert fields["files"] == {"type": "array", "items": {"type": "string", "format": "binary"}}
    assert encoding == {"metadata": {"contentType": "application/json"}}
    fields, encoding = form("/search")
    assert fields["file"] == {"type": "string", "format": "binary"}
    assert encoding == {"filter": {"contentType": "application/json"}}
    fields, _ = form("/detect")
    assert fields["phrases"]["type"] == "array" and fields["phrases"]["minItems"] == 1


async def test_the_api_reference_works_offline(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    links = re.findall(r"""(?:src|href|url)(?:=|:\s*)["']([^"']+)["']""", page.text)
    assert len(links) >= 3 and not [link for link in links if "//" in link]
    for link in links:
        assert (await client.get(f"/{link.lstrip('/')}")).status_code == 200, link
