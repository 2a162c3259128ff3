"""POST /v1/embeddings with the openai client against a running server, and with requests that it never sends."""

from __future__ import annotations

import base64
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest


def uri(data: bytes, kind: str = "audio/wav") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_the_openai_client(run_server: Callable[..., str], sounds: SimpleNamespace) -> None:
    address = run_server(api_keys="secret")
    api = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
    texts, files = ["tone 400", "dog barking"], [sounds.wav(400), sounds.encode(sounds.tone(800, 2), "FLAC")]
    own = httpx.Client(base_url=address, headers={"Authorization": "Bearer secret"}, timeout=60)
    text_vectors = [t["embedding"] for t in own.post("/embed", json={"texts": texts}).json()["texts"]]
    parts = [("files", (f"{n}", data)) for n, data in enumerate(files)]
    sound_vectors = [a["embedding"] for a in own.post("/embed", files=parts).json()["audio"]]

    sound = {"modality": "audio"}
    for given, extra, expected, tokens in (
        (texts, {}, text_vectors, 4),
        ([uri(files[0]), uri(files[1], "audio/flac")], sound, sound_vectors, 7 + 13),
    ):
        coded = api.embeddings.create(model="fake", input=given, extra_body=extra)  # the client requests base64
        plain = api.embeddings.create(model="fake", input=given, encoding_format="float", extra_body=extra)
        for answer in (coded, plain):
            assert [item.index for item in answer.data] == [0, 1] and answer.model == "fake"
            assert all(len(item.embedding) == 16 for item in answer.data)
            assert np.abs(np.array([item.embedding for item in answer.data]) - np.array(expected)).max() < 1e-6
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
    one = api.embeddings.create(model="fake", input="tone 400", dimensions=16, user="someone")
    assert np.abs(np.array(one.data[0].embedding) - text_vectors[0]).max() < 1e-6

    assert [model.id for model in api.models.list()] == ["fake"] and api.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError, match="'text-embedding-3-small'; this service has 'fake'") as missing:
        api.embeddings.create(model="text-embedding-3-small", input="rain")
    assert missing.value.code == "model-not-found" and missing.value.request_id
    with pytest.raises(openai.UnprocessableEntityError, match="token arrays are not supported") as tokens_refused:
        api.embeddings.create(model="fake", input=[[1, 2, 3]])
    assert tokens_refused.value.param == "input"
    with pytest.raises(openai.UnprocessableEntityError, match=r"input\[1\]"):
        api.embeddings.create(model="fake", input=[uri(files[0]), "data:audio/wav;base64,A"], extra_body=sound)
    with pytest.raises(openai.AuthenticationError, match="The API key is invalid"):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({}, 422, "input"),
        ({"input": []}, 422, "empty"),
        ({"input": ""}, 422, "item 0 is empty"),
        ({"input": ["rain", " \n"]}, 422, "item 1 is empty"),
        ({"input": ["rain", "\u0000"]}, 422, "input[1]"),
        ({"input": ["rain", "x" * 1001]}, 422, "input[1]"),
        ({"input": ["rain", 5]}, 422, "item 1 is not a string"),
        ({"input": [1, 2, 3]}, 422, "token arrays"),
        ({"input": [[1], [2]]}, 422, "token arrays"),
        ({"input": 5}, 422, "token arrays"),
        ({"input": None}, 422, "not a string"),
        ({"input": ["rain"] * 2049}, 422, "2048"),
        ({"input": "rain", "model": "other"}, 404, "'fake'"),
        ({"input": "rain", "dimensions": 8}, 422, "16"),
        ({"input": "rain", "encoding_format": "int8"}, 422, "encoding_format"),
        ({"input": "rain", "modality": "image"}, 422, "modality"),
        ({"input": "rain", "modality": "audio"}, 422, "input[0]"),
        ({"input": "data:audio/wav,abc", "modality": "audio"}, 422, "input[0]"),
        ({"input": "data:audio/wav;base64,@@@@", "modality": "audio"}, 422, "input[0]"),
        ({"input": "data:;base64,", "modality": "audio"}, 422, "input[0]"),
        ({"input": uri(b"dear diary"), "modality": "audio"}, 415, "input[0]"),
    ],
)
async def test_invalid_inputs_are_rejected(
    client: httpx.AsyncClient, body: dict[str, Any], status: int, word: str
) -> None:
    response = await client.post("/v1/embeddings", json=body)
    problem = response.json()
    assert response.status_code == status and word in problem["detail"], response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["error"]["message"] == problem["detail"] and problem["error"]["code"]


async def test_data_uri_variants(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    data = sounds.wav(400)
    code = base64.b64encode(data).decode()
    forms = [
        f"data:;base64,{code}",
        f"DATA:Audio/WAV;charset=utf-8;BASE64,{code}",
        "data:audio/wav;base64," + code.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
    ]
    answer = (await client.post("/v1/embeddings", json={"input": forms, "modality": "audio"})).json()
    vectors = [item["embedding"] for item in answer["data"]]
    assert len(vectors) == 3 and vectors[0] == vectors[1] == vectors[2]


async def test_one_invalid_file_fails_the_request(client: httpx.AsyncClient, sounds: SimpleNamespace) -> None:
    inputs = [uri(sounds.wav(400)), uri(sounds.wav(400)[:60]), uri(b"")]
    failed = await client.post("/v1/embeddings", json={"input": inputs, "modality": "audio"})
    assert failed.status_code == 422 and "input[1]" in failed.json()["detail"]
    assert (await client.post("/v1/embeddings", json={"input": "rain"})).status_code == 200


async def test_usage_counts_tokens_with_the_tokenizer(client: httpx.AsyncClient, fake_model: Any) -> None:
    def tokenise(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        mask = np.zeros((len(texts), 9), int)
        for row, text in enumerate(texts):
            mask[row, : len(text)] = 1
        return mask, mask

    fake_model.tokenise = tokenise
    answer = (await client.post("/v1/embeddings", json={"input": ["rain", "dog"]})).json()
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
