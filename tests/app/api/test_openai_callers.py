"""Programs that call /v1/embeddings as they are published: LangChain, LiteLLM, OpenAI's client for JavaScript, curl.

Each is tested where it is installed; the project needs none of them. What they send is also tested without them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

TEXTS = ["tone 400", "tone 1600"]


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def assert_tones(vectors: list[list[float]]) -> None:
    """The fake model's directions of the two tones."""
    assert np.argmax(np.array(vectors), axis=1).tolist() == [1, 3]


# what callers send where their caller said nothing, and fields of other services
@pytest.mark.parametrize(
    "extra",
    [
        {"encoding_format": None},  # LiteLLM
        {"encoding_format": None, "user": None, "dimensions": None, "model": None, "modality": None},
        {"input_type": "query", "truncate": "END"},  # NVIDIA NIM, by LangChain
        {"input_type": "search_document", "embedding_types": ["float"], "task": "retrieval.query"},  # Cohere, Jina
        {"encoding_format": "float", "extra_body": {}, "metadata": {"a": 1}},
        {"truncate_prompt_tokens": 512, "priority": 0, "add_special_tokens": True},  # vLLM
        {"keep_alive": "5m", "options": {}},  # Ollama
    ],
)
async def test_fields_of_other_services(client: httpx.AsyncClient, extra: dict[str, Any]) -> None:
    answer = await client.post("/v1/embeddings", json={"input": TEXTS, **extra})
    assert answer.status_code == 200, answer.text
    assert_tones([item["embedding"] for item in answer.json()["data"]])


@pytest.mark.parametrize(
    "wrong", [{"encoding_format": "int8"}, {"modality": "video"}, {"dimensions": 7}, {"input": None}, {"input": [None]}]
)
async def test_values_that_change_the_answer_are_still_checked(
    client: httpx.AsyncClient, wrong: dict[str, Any]
) -> None:
    answer = await client.post("/v1/embeddings", json={"input": TEXTS, **wrong})
    assert answer.status_code == 422 and answer.json()["error"]["message"]


def test_langchain(run_server: Callable[..., str]) -> None:
    need("langchain_openai")
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        model="fake",
        base_url=f"{run_server(api_keys='secret')}/v1",
        api_key="secret",
        check_embedding_ctx_length=False,  # otherwise it sends tokens of OpenAI's vocabulary
    )
    assert_tones(embeddings.embed_documents(TEXTS))
    assert_tones([embeddings.embed_query(text) for text in TEXTS])


def test_litellm(run_server: Callable[..., str]) -> None:
    need("litellm")
    import litellm

    answer = litellm.embedding(
        model="openai/fake", input=TEXTS, api_base=f"{run_server(api_keys='secret')}/v1", api_key="secret"
    )
    assert_tones([item["embedding"] for item in answer.data])


def test_openai_for_javascript(run_server: Callable[..., str], tmp_path: Path) -> None:
    """`npm install openai` somewhere, and FINELAP_NODE_MODULES names its node_modules."""
    node, modules = shutil.which("node"), os.environ.get("FINELAP_NODE_MODULES", "")
    if node is None or not Path(modules, "openai").is_dir():
        pytest.skip("node or its package openai is not installed")
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "call.mjs").write_text(
        "import OpenAI from 'openai';"
        "const [baseURL, input] = process.argv.slice(2);"
        "const api = new OpenAI({ baseURL, apiKey: 'secret' });"
        "const { data } = await api.embeddings.create({ model: 'fake', input: JSON.parse(input) });"
        "console.log(JSON.stringify(data.map((item) => Array.from(item.embedding))));"
    )
    address = f"{run_server(api_keys='secret')}/v1"
    command = [node, str(tmp_path / "call.mjs"), address, json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert_tones(json.loads(done.stdout))


def test_curl(run_server: Callable[..., str], tmp_path: Path) -> None:
    """curl's forms, names in quotes, resumed downloads (-C) and conditional ones (--etag-compare)."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    address = run_server()
    rng = np.random.default_rng(5)
    sound = tmp_path / "sea, wind.wav"
    import soundfile

    soundfile.write(sound, rng.normal(0, 0.1, 16_000), 16_000)

    def run(*arguments: str) -> str:
        done = subprocess.run([curl, "-sS", *arguments], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    clip = json.loads(run(f"{address}/clips", "-F", f'files=@"{sound}"'))["clips"][0]
    assert clip["filename"] == sound.name
    url, got, tag = f"{address}/clips/{clip['id']}/audio", tmp_path / "got.wav", tmp_path / "etag"
    run(url, "-r", "0-999", "-o", str(got))
    assert got.stat().st_size == 1000
    run(url, "-C", "-", "-o", str(got))
    assert got.read_bytes() == sound.read_bytes()
    run(url, "--etag-save", str(tag), "-o", str(got))
    status = run(url, "--etag-compare", str(tag), "-o", str(tmp_path / "again"), "-w", "%{http_code}")
    assert status == "304"
