"""The service with CLAP and PE-AV checkpoints: their outputs through its calls, and what it refuses."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch
from fastapi import FastAPI

from app.cli.reindex import reindex
from app.inference.engine import Engine, load_model
from app.main import create_app
from app.settings import Settings
from index import CheckpointMismatch, SqliteLibrary
from tests.support.external import RATE, clap_clips, clap_texts, sound, tokenise


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture
def serve(tmp_path: Path, open_client: Callable[..., httpx.AsyncClient]) -> Callable[..., Any]:
    """Serves a checkpoint from a data folder; takes the folder and settings."""

    @asynccontextmanager
    async def start(checkpoint: Path, **values: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings = Settings(
            _env_file=None, checkpoint=str(checkpoint), data_dir=tmp_path / "data", device="cpu", **values
        )
        model = load_model(settings)
        library = SqliteLibrary.open(settings.data_dir, dim=model.dim, checkpoint=model.stamp)
        app: FastAPI = create_app(settings, Engine(model), library)
        async with app.router.lifespan_context(app), open_client(app) as client:
            yield client

    return start


def cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


async def upload(client: httpx.AsyncClient, **samples: np.ndarray) -> list[str]:
    files = [("files", (f"{name}.wav", wav(s))) for name, s in samples.items()]
    answer = await client.post("/clips", files=files)
    assert answer.status_code == 201, answer.text
    return [clip["id"] for clip in answer.json()["clips"]]


async def test_clap_searches_whole_clips_and_refuses_frames(serve: Callable[..., Any], clap: tuple[Path, Any]) -> None:
    folder, theirs = clap
    low, high = sound(1.2), sound(2.0, 3)
    clips = clap_clips(folder, theirs, [low, high]).numpy()
    text = clap_texts(folder, theirs, ["a dog barking"])[0].numpy()
    async with serve(folder) as client:
        info = (await client.get("/info")).json()["model"]
        assert (info["family"], info["sample_rate"], info["frames"], info["frame_hop"]) == ("clap", RATE, None, None)
        assert (info["licence"], info["window"], info["calibrated"]) == ("apache-2.0", 2.0, False)
        answer = await client.post("/embed", files={"files": ("low.wav", wav(low))}, data={"texts": "a dog barking"})
        embedded = answer.json()
        assert cosine(embedded["audio"][0]["embedding"], clips[0]) > 0.9999
        assert cosine(embedded["texts"][0]["embedding"], text) > 0.9999
        ids = await upload(client, low=low, high=high)
        found = await client.post("/search", json={"query": "a dog barking", "mode": "semantic"})
        hits = {hit["clip"]["id"]: hit["similarity"] for hit in found.json()["hits"]}
        assert hits == pytest.approx({i: cosine(c, text) for i, c in zip(ids, clips, strict=True)}, abs=2e-3)
        labels = await client.post("/classify", data={"clip_id": ids[0], "labels": ["dog", "rain"]})
        assert labels.status_code == 200
        peaks = (await client.get(f"/clips/{ids[1]}/peaks?n=10")).json()
        assert peaks
        refused = [
            await client.post("/detect", data={"clip_id": ids[0], "phrases": ["dog"]}),
            await client.post(
                "/detect", data={"phrases": ["dog"], "format": "ndjson"}, files={"file": ("a.wav", wav(low))}
            ),
            await client.post("/search", json={"query": "dog", "moments": True}),
            await client.post("/search/moments", json={"query": "dog"}),
            await client.post("/search", json={"like": [{"clip_id": ids[0], "start": 0, "end": 1}]}),
            await client.post("/embed", files={"files": ("a.wav", wav(low))}, data={"frames": "true"}),
        ]
        for answer in refused:
            assert answer.status_code == 422 and answer.json()["type"].endswith(":frames-unsupported"), answer.text


async def test_sliding_frames_are_windows_around_each_second(serve: Callable[..., Any], clap: tuple[Path, Any]) -> None:
    folder, _ = clap
    recording = np.concatenate([sound(3.0), sound(3.0, 4)])
    async with serve(folder, sliding_frames=True) as client:
        info = (await client.get("/info")).json()["model"]
        assert (info["frames"], info["frame_hop"]) == ("sliding", 1.0)
        form = {"phrases": ["dog", "rain"], "frames": "true", "threshold": "0.5"}
        answer = await client.post("/detect", data=form, files={"file": ("a.wav", wav(recording))})
        assert answer.status_code == 200, answer.text
        scores = np.array([p["frame_scores"] for p in answer.json()["phrases"]])
        assert scores.shape == (2, 6) and abs(scores[:, 0] - scores[:, -1]).max() > 1e-3
        (clip,) = await upload(client, both=recording)
        found = await client.post("/search", json={"query": "dog", "moments": True})
        assert found.json()["hits"][0]["moments"]


async def test_pe_audio_detects_with_the_models_own_scores(
    serve: Callable[..., Any], pe_audio: tuple[Path, Any]
) -> None:
    from transformers import PeAudioFeatureExtractor

    folder, theirs = pe_audio
    phrases, samples = ["dog barking", "loud rain"], np.concatenate([sound(0.5), sound(0.61, 2)])
    values = PeAudioFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=RATE, return_tensors="pt")
    ids = tokenise(folder, phrases)
    with torch.no_grad():
        output = theirs(**ids, input_values=values["input_values"])
    expected = output.logits_audio_text[0].sigmoid().numpy()
    async with serve(folder) as client:
        info = (await client.get("/info")).json()["model"]
        assert (info["family"], info["frames"], info["frame_hop"]) == ("pe_audio", "native", 0.04)
        file = {"file": ("a.wav", wav(samples))}
        form = {"phrases": phrases, "frames": "true", "threshold": "0.5"}
        answer = (await client.post("/detect", data=form, files=file)).json()
        scores = np.array([p["frame_scores"] for p in answer["phrases"]])
        assert scores.shape == expected.shape == (2, 28) and np.allclose(scores, expected, atol=2e-4)
        embedded = (
            await client.post("/embed", data={"frames": "true"}, files={"files": ("a.wav", wav(samples))})
        ).json()
        frames = np.array(embedded["audio"][0]["frames"]["embeddings"])
        assert min(cosine(a, b) for a, b in zip(frames, output.audio_embeds[0].numpy(), strict=True)) > 0.9999
        assert np.allclose(np.linalg.norm(frames, axis=1), 1, atol=1e-4)
        (clip,) = await upload(client, a=samples)
        stored = (await client.post("/detect", data=form | {"clip_id": clip})).json()
        scores = np.array([p["frame_scores"] for p in stored["phrases"]])
        assert np.abs(scores - expected).max() < 0.05, "the same from stored frames, which are quantised"
        outline = form | {"format": "ndjson", "outline": "true", "outline_step": "0.02"}
        lines = (await client.post("/detect", data=outline, files=file)).text
        assert '"outline"' in lines and '"end"' in lines


async def test_a_library_of_one_refuses_the_other_until_it_is_embedded_again(
    serve: Callable[..., Any],
    clap: tuple[Path, Any],
    pe_audio: tuple[Path, Any],
    small_checkpoint: Path,
    tmp_path: Path,
) -> None:
    """From CLAP to PE-AV, to FineLAP, and back to CLAP."""
    async with serve(clap[0]) as client:
        await upload(client, low=sound(1.0), high=sound(2.5, 3))
    with pytest.raises(CheckpointMismatch):
        async with serve(clap[0], sliding_frames=True):
            pass
    for checkpoint in (pe_audio[0], small_checkpoint, clap[0]):
        with pytest.raises(CheckpointMismatch):
            async with serve(checkpoint):
                pass
        settings = Settings(_env_file=None, checkpoint=str(checkpoint), data_dir=tmp_path / "data", device="cpu")
        assert await asyncio.to_thread(reindex, settings, False) == 0
        async with serve(checkpoint) as client:
            moments = checkpoint != clap[0]
            query = {"query": "a dog", "mode": "semantic"} | ({"moments": True} if moments else {})
            hits = (await client.post("/search", json=query)).json()["hits"]
            assert {hit["clip"]["filename"] for hit in hits} == {"low.wav", "high.wav"}
            assert all(bool(hit["moments"]) == moments for hit in hits)
