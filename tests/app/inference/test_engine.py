"""The engine: batched results equal single ones; long files, caches and checks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from app.inference.batcher import BatchReport, QueueFull
from app.inference.engine import Engine, NotFinite
from model.cpu.threads import limited
from model.windows import centred, join_windows, plan_windows
from tests.support.audio import embed, embedding_stream


@asynccontextmanager
async def started(model: Any, **options: Any) -> AsyncIterator[Engine]:
    engine = Engine(model, **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close(grace=5)


def one_by_one(model: Any, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The expected results, computed one window at a time."""
    plan = plan_windows(len(samples), model.config.windows)
    pairs = [model.encode_windows([centred(samples[w.start : w.stop])])[0] for w in plan]
    return join_windows(plan, np.stack([clip for clip, _ in pairs]), [track for _, track in pairs])


async def test_batched_equals_one_by_one(fake_model: Any, sounds: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    recordings = [
        np.concatenate([sounds.tone(rng.choice(sounds.TONES), s) for s in rng.uniform(0.1, 12, rng.integers(1, 4))])
        for _ in range(12)
    ]
    expected = [one_by_one(fake_model, samples) for samples in recordings]
    fake_model.max_windows = 5  # the model asserts it
    fake_model.audio_batches.clear()
    async with started(fake_model, max_batch_windows=5, max_queue_windows=40) as engine:
        embedded = await asyncio.gather(*(embed(engine, samples) for samples in recordings))
    for (clip, frames), result in zip(expected, embedded, strict=True):
        np.testing.assert_allclose(result[0], clip, atol=1e-6)
        np.testing.assert_allclose(result[1], frames, atol=1e-6)
    assert engine.frame_hop == 0.16
    assert max(fake_model.audio_batches) == 5


async def test_concurrent_batches_share_the_limit_and_texts_have_their_own_thread(
    fake_model: Any, sounds: SimpleNamespace
) -> None:
    fake_model.at_once, fake_model.max_windows = 2, 4
    gate, computing, counts = threading.Event(), threading.Semaphore(0), set[int]()

    def hold_audio() -> None:
        counts.add(torch.get_num_threads())
        if threading.current_thread().name.startswith("audio"):
            computing.release()
            gate.wait(60)

    async with started(fake_model, max_batch_windows=8) as engine:
        fake_model.audio_batches.clear()
        fake_model.before = hold_audio
        try:
            work = [asyncio.create_task(embed(engine, sounds.tone(400, 10.0))) for _ in range(12)]
            for _ in range(2):  # both batches are held up
                assert await asyncio.to_thread(computing.acquire, timeout=10)
            async with asyncio.timeout(10):
                with limited(1):  # as for another batch, when a thread starts
                    assert (await engine.embed_texts(["tone 400"])).shape == (1, engine.dim)
        finally:
            gate.set()
        await asyncio.gather(*work)
    assert sum(fake_model.audio_batches) == 12
    assert counts == {torch.get_num_threads()}


class WordsByLetters:
    """A tokenizer for the fake model: one token per letter."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        ids = [[1 + ord(c) % 30 for c in text[:8]] for text in texts]
        longest = max(map(len, ids))
        return {
            "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
        }


async def test_lanes_match_the_model(sounds: SimpleNamespace) -> None:
    from model.config import AdapterConfig, EncoderConfig, FineLAPConfig, MelConfig, TextConfig, WindowConfig
    from model.finelap import FineLAP

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = FineLAPConfig(
        dim=16,
        mel=MelConfig(num_mel_bins=32),
        windows=WindowConfig(mel_frames=256, frames=16, overlap_frames=4, buckets=(4, 8)),
        audio_encoder=EncoderConfig("eat", {"dim": 32, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "patch": 16}),
        adapter=AdapterConfig("decoupled", {"layers": 1, "heads": 2, "hidden": 32}),
        text=TextConfig(
            max_tokens=8, params={"hidden": 32}, hf_config={"model_type": "bert", "vocab_size": 32, **sizes}
        ),
    )
    model = FineLAP(config, WordsByLetters()).eval()
    rng = np.random.default_rng(0)
    recordings = [
        (0.1 + rng.standard_normal(int(s * 16_000)) * 0.1).astype(np.float32) for s in (0.3, 7, 1.1, 3.3, 0.8)
    ]
    texts = ["dog", "a loud bell", "rain"]
    expected = [model.encode_audio([samples], 16_000)[0] for samples in recordings]
    async with started(model, max_batch_windows=3) as engine:
        embedded = await asyncio.gather(*(embed(engine, samples) for samples in recordings))
        vectors = await engine.embed_texts(texts)
        scores = engine.frame_score(embedded[0][1], vectors)
    np.testing.assert_allclose(vectors, model.encode_text(texts).numpy(), atol=1e-5)
    np.testing.assert_allclose(scores, model.frame_score(expected[0].frames, model.encode_text(texts)), atol=1e-5)
    for (clip, frames), wanted in zip(embedded, expected, strict=True):
        np.testing.assert_allclose(clip, wanted.clip.numpy(), atol=1e-5)
        np.testing.assert_allclose(frames, wanted.frames.numpy(), atol=1e-5)


async def test_recording_longer_than_the_queue(fake_model: Any, sounds: SimpleNamespace) -> None:
    samples = np.concatenate([sounds.tone(400, 100), sounds.tone(800, 100)])
    expected = one_by_one(fake_model, samples)
    async with started(fake_model, max_batch_windows=2, max_queue_windows=3) as engine:
        clip, frames = await embed(engine, samples)
    np.testing.assert_allclose(clip, expected[0], atol=1e-6)
    np.testing.assert_array_equal(frames, expected[1])
    assert len(frames) == 1250


async def test_full_queue_rejects_but_the_check_passes(fake_model: Any, sounds: SimpleNamespace) -> None:
    async with started(fake_model, max_batch_windows=1, max_queue_windows=2) as engine:
        gate, computing = threading.Event(), threading.Event()
        fake_model.before = lambda: (computing.set(), gate.wait(60))
        work = []
        # one window is on the device, and in the queue the first caller's next and the first ones of two more
        for depth in (1, 2, 3):
            work.append(asyncio.create_task(embed(engine, sounds.tone(400, 40))))
            async with asyncio.timeout(60):
                while not computing.is_set() or engine.audio_lane.depth != depth:
                    await asyncio.sleep(0.001)
        with pytest.raises(QueueFull):
            await embed(engine, sounds.tone(400, 1))
        with pytest.raises(QueueFull):
            engine.refuse_if_full()
        check = asyncio.create_task(engine.check())
        await asyncio.sleep(0.01)
        assert not check.done()
        gate.set()
        await check
        await asyncio.gather(*work)


async def test_recording_is_embedded_while_it_arrives(fake_model: Any, sounds: SimpleNamespace) -> None:
    samples = np.concatenate([sounds.tone(hz, 11) for hz in (400, 800, 1600)])
    clip, frames = one_by_one(fake_model, samples)
    heard = asyncio.Event()

    async def blocks() -> AsyncIterator[np.ndarray]:
        for number, block in enumerate(np.array_split(samples, 40)):
            if number == 30:  # the next window's place is known, so the first one is out
                async with asyncio.timeout(60):
                    await heard.wait()  # it continues only once some results are read
            yield block

    async with started(fake_model, max_batch_windows=4) as engine, embedding_stream(engine, blocks) as stream:
        parts = []
        async for part in stream:
            heard.set()
            parts.append(part)
        np.testing.assert_allclose(stream.embedding, clip, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate(parts), frames)


async def test_paused_reader_pauses_the_recording_and_leaving_ends_it(fake_model: Any, sounds: SimpleNamespace) -> None:
    given, closed = 0, False

    async def blocks() -> AsyncIterator[np.ndarray]:
        nonlocal given, closed
        try:
            while True:
                given += 1
                yield sounds.tone(400, 10)
        finally:
            closed = True

    async with started(fake_model, max_batch_windows=2) as engine:
        async with embedding_stream(engine, blocks) as stream:
            async for _ in stream:
                await asyncio.sleep(0.2)
                break
            assert given <= 2 * 2 + 4  # windows in flight, and the samples held for the next one
        assert closed and engine.audio_lane.depth == 0
        assert (await embed(engine, sounds.tone(400, 1)))[1].shape == (7, 16)


async def test_errors_of_the_recording_reach_the_reader(fake_model: Any, sounds: SimpleNamespace) -> None:
    async def blocks() -> AsyncIterator[np.ndarray]:
        yield sounds.tone(400, 30)
        raise ZeroDivisionError

    async with started(fake_model) as engine, embedding_stream(engine, blocks) as stream:
        with pytest.raises(ZeroDivisionError):
            async for _ in stream:
                pass
        assert len(await engine.embed_texts(["a"])) == 1


async def test_texts_are_cached(fake_model: Any) -> None:
    async with started(fake_model) as engine:
        fake_model.text_batches.clear()
        first = await engine.embed_texts(["rain", "dog", "rain"])
        again = await engine.embed_texts(["dog", "rain"])
        np.testing.assert_array_equal(first, again[[1, 0, 1]])
        assert fake_model.text_batches == [["rain", "dog"]]
        assert (await engine.embed_texts([])).shape == (0, fake_model.dim)


async def test_more_texts_than_the_cache_holds(fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.inference.engine._TEXT_CACHE", 3)
    async with started(fake_model) as engine:
        texts = [f"text {i}" for i in range(10)]
        vectors = await engine.embed_texts(texts)
        np.testing.assert_array_equal(vectors, fake_model.encode_text(texts))
        fake_model.text_batches.clear()
        await engine.embed_texts(["text 9", "text 0"])
        assert fake_model.text_batches == [["text 0"]]


async def test_every_padded_length_is_warmed_up_before_the_first_request(fake_model: Any) -> None:
    lengths = []
    encode = fake_model.encode_windows
    fake_model.encode_windows = lambda windows: lengths.extend(len(f) for _, f in encode(windows)) or encode(windows)
    async with started(fake_model):
        assert lengths == [8, 16, 32, 64]
        assert fake_model.text_batches


async def test_broken_model_does_not_start(fake_model: Any) -> None:
    fake_model.fail_on = "a sound"
    with pytest.raises(RuntimeError, match="breaks the model"):
        await Engine(fake_model).start()


async def test_check_runs_the_model_and_is_valid_for_a_second(fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.inference.engine._CHECK_TTL", 60)  # a busy machine may need longer
    async with started(fake_model) as engine:
        fake_model.audio_batches.clear()
        fake_model.text_batches.clear()
        await engine.embed_texts(["a sound"])  # the check must not use a cached text
        fake_model.text_batches.clear()
        await asyncio.gather(*(engine.check() for _ in range(5)))
        assert fake_model.audio_batches == [1] and fake_model.text_batches == [["a sound"]]
        fake_model.fail_on = "a sound"
        await engine.check()
        monkeypatch.undo()
        engine._checked_at = time.monotonic() - 1.1
        with pytest.raises(RuntimeError):
            await engine.check()


async def test_non_finite_values_fail_only_their_caller(fake_model: Any, sounds: SimpleNamespace) -> None:
    encode_window = fake_model._encode_window

    def broken(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        clip, frames = encode_window(samples)
        return (clip * np.nan, frames) if frames[0, 2] else (clip, frames)

    async with started(fake_model) as engine:
        fake_model._encode_window = broken
        good, bad = await asyncio.gather(
            embed(engine, sounds.tone(400, 1)), embed(engine, sounds.tone(800, 1)), return_exceptions=True
        )
    assert not isinstance(good, BaseException) and isinstance(bad, NotFinite)


async def test_scores(fake_model: Any) -> None:
    async with started(fake_model) as engine:
        texts = await engine.embed_texts(["tone 400", "tone 800"])
        frames = texts[[0, 0, 1]]
        assert engine.frame_score(frames, texts).shape == (2, 3)
        similarity = np.array([-1.0, 0.3, 0.5, 1.0], dtype=np.float32)
        expected = engine.clip_score(similarity[:, None] * texts[:1], texts[:1])[:, 0]
        logits = engine.match_logits(similarity, np.array([np.nan, 0.2, 0.6, np.nan]))
        best = np.array([-1.0, 0.3, 0.6, 1.0], dtype=np.float32)
        np.testing.assert_allclose(logits, best / 0.1 - 5, rtol=1e-5)
        np.testing.assert_allclose((1 / (1 + np.exp(-logits)))[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-5)
        np.testing.assert_allclose(engine.clip_logits(texts[0], texts), texts @ texts[0] / 0.1 - 5, rtol=1e-5)


async def test_batches_are_reported_by_lane(fake_model: Any, sounds: SimpleNamespace) -> None:
    reports: list[tuple[str, BatchReport]] = []
    async with started(fake_model) as engine:
        engine.on_batch = lambda lane, report: reports.append((lane, report))
        await embed(engine, sounds.tone(400, 30))
        await engine.embed_texts(["x", "y"])
    assert sum(r.size for lane, r in reports if lane == "audio") == 4
    assert [r.size for lane, r in reports if lane == "text"] == [2]
