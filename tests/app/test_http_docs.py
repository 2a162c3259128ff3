"""docs/http-api.md does what it says: every command of it is run against a service, and the answers look as shown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FLAGS = ("-N", "--get")
_STATUSES = {"k=0": 422}


@pytest.fixture
def address(run_server: Callable[..., str]) -> str:
    """The address of a running service."""
    return run_server()


def curl(command: str) -> httpx.Response:
    """What curl would do, as far as the page uses it. Files are read from the current folder."""
    words = shlex.split(command)
    assert words.pop(0) == "curl"
    method, data, headers = None, None, {}
    url, fields, query, files = "", {}, [], []
    as_query = "--get" in words
    words = [word for word in words if word not in _FLAGS]
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word in ("-d", "--data-urlencode"):
            data = words.pop(0)
        elif word == "-o":
            words.pop(0)
        elif word == "-F":
            name, _, value = words.pop(0).partition("=")
            if value.startswith("@"):
                files.append((name, (value[1:], Path(value[1:]).read_bytes())))
            else:
                fields.setdefault(name, []).append(value)
        else:
            assert not word.startswith("-") and not url, f"{word} in {command}"
            url = word
    if as_query:
        assert data is not None
        query, data = [tuple(data.split("=", 1))], None
        url += "?" + urlencode(query)
    if fields and not files:  # curl's -F is multipart whatever it holds
        files = [(name, (None, value)) for name, values in fields.items() for value in values]
        fields = {}
    method = method or ("POST" if data is not None or files else "GET")
    return httpx.request(method, url, content=data, headers=headers, data=fields, files=files or None, timeout=30)


def same_shape(shown: Any, given: Any, where: str = "") -> None:
    """Fails unless an answer has the keys and kinds of values that the page shows."""
    if isinstance(shown, dict) and where.endswith(".metadata"):
        assert isinstance(given, dict), where
    elif isinstance(shown, dict):
        assert isinstance(given, dict) and set(shown) == set(given), (where, given)
        for key in shown:
            same_shape(shown[key], given[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert isinstance(given, list), where
        if shown and given:
            same_shape(shown[0], given[0], where + "[0]")
    elif isinstance(shown, int | float):
        assert isinstance(given, int | float), (where, given)
    elif shown is not None:
        assert type(shown) is type(given), (where, given)


def test_the_page_s_commands(
    address: str,
    repo_dir: Path,
    tmp_path: Path,
    sounds: SimpleNamespace,
    fake_model: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("dog.wav", "example.wav", "recording.wav")):
        Path(name).write_bytes(sounds.wav(sounds.TONES[number], 2))
    Path("rain.flac").write_bytes(sounds.encode(sounds.tone(800, 2), "FLAC"))
    page = (repo_dir / "docs" / "http-api.md").read_text(encoding="utf-8")
    variables = {"S": address}
    calls: set[str] = set()
    response: httpx.Response | None = None
    for language, text in _BLOCK.findall(page):
        if language == "json":
            assert response is not None
            same_shape(json.loads(text), response.json())
        elif language == "python":
            namespace: dict[str, Any] = {}
            exec(text.replace("http://127.0.0.1:8080", address).replace("finelap-small", "fake"), namespace)
            assert len(namespace["texts"].data) == 2 and len(namespace["sounds"].data[0].embedding) == fake_model.dim
        else:
            assert language == "sh", language
            for line in filter(None, text.splitlines()):
                if line.startswith("S="):
                    continue
                command = re.sub(r"\$(\w+)", lambda found: variables[found[1]], line)
                response = curl(command)
                wanted = next((status for sign, status in _STATUSES.items() if sign in line), None)
                assert response.status_code == wanted if wanted else response.is_success, (line, response.text)
                calls.add(f"{response.request.method} {response.request.url.path}")
                if response.request.url.path == "/clips" and response.request.method == "POST":
                    variables["ID"] = response.json()["clips"][0]["id"]
    document = httpx.get(f"{address}/openapi.json").json()
    said = {path.replace(variables["ID"], "{clip_id}") for path in calls}
    every = {f"{method.upper()} {path}" for path, calls in document["paths"].items() for method in calls}
    assert said <= every
    in_prose = {
        "DELETE /clips/{clip_id}",
        "GET /clips/{clip_id}/similar",
        "GET /clips/duplicates",
        "GET /v1/models/{model}",
    }
    assert every - said == in_prose
    for call in in_prose - {"GET /v1/models/{model}"}:
        assert call.replace("{clip_id}", "{id}") in page


def test_the_page_names_every_status(repo_dir: Path) -> None:
    from app.errors import KINDS

    page = (repo_dir / "docs" / "http-api.md").read_text(encoding="utf-8")
    told = set(map(int, re.findall(r"^\| (\d{3}) \|", page, re.MULTILINE)))
    assert told == {kind.status for kind in KINDS.values()} | {405}
