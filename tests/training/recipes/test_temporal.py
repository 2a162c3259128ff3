"""The temporal stage: scenes are drawn by number, encoded once, and only the attention learns from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from model import FineLAP
from model.config import SAMPLE_RATE, AdapterConfig, EvidenceConfig, TemporalConfig
from tests.model.conftest import build_config, build_tokenizer, fill
from training.config import TemporalStageConfig
from training.data.audio_cache import AudioStore
from training.data.manifests import Item
from training.data.phrase_bank import PhraseBank
from training.init.closed_form import with_temporal_attention
from training.recipes import finelap_small
from training.recipes.finelap_small import run_stage
from training.tasks import temporal
from training.tasks.temporal import TemporalBatches, TemporalScenes, TemporalTask, encode_scenes

LABELS = ("dog barks", "bird sings", "rain", "")
BANK = PhraseBank([[phrase] for phrase in (*LABELS[:3], "a bell", "a train", "wind", "applause")])
CONFIG = TemporalStageConfig(steps=30, scenes=40, batch=8, phrases=4, learning_rate=1e-2, warmup=2, save_every=15)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    folder, items, rng = tmp_path_factory.mktemp("sounds"), [], np.random.default_rng(0)
    for number, label in enumerate(LABELS):
        for take, seconds in enumerate((0.4, 1.0, 6.0)):
            n = int(seconds * SAMPLE_RATE)
            samples = 0.3 * np.sin(np.arange(n) * (0.05 + 0.3 * number)) + 0.02 * rng.standard_normal(n)
            path = folder / f"{number}-{take}.wav"
            soundfile.write(path, samples, SAMPLE_RATE)
            items.append(Item(path.name, path, (label,) if label else ()))
    return AudioStore(folder / "store.i16", items)


def plain_model() -> FineLAP:
    config = build_config(adapter=AdapterConfig("concept", {"concepts": 5, "hidden": 8}))
    evidence = EvidenceConfig(rank=3)
    model = FineLAP(replace(config, dim=config.dim + evidence.dims, evidence=evidence), build_tokenizer())
    fill(model)
    return model.eval()


def scenes_of(store: AudioStore, model: FineLAP, config: TemporalStageConfig = CONFIG) -> TemporalScenes:
    windows = model.config.windows
    return TemporalScenes(store, np.ones(len(store)), config, windows.frames * windows.frame_hop)


def labels_of(store: AudioStore) -> list[str]:
    return [item.captions[0] if item.captions else "" for item in store.items]


def test_scenes_are_drawn_by_number_and_of_three_kinds(store: AudioStore) -> None:
    model = plain_model()
    scenes = scenes_of(store, model)
    for number in (0, 7):
        first, again = scenes.draw(number), scenes_of(store, model).draw(number)
        assert np.array_equal(first.samples, again.samples) and first.events == again.events
    short = scenes_of(store, model, replace(CONFIG, sparse=0.0, short=1.0)).draw(1)
    assert len(short.samples) < scenes.size and len({source for source, _, _ in short.events}) == 1
    sparse = scenes_of(store, model, replace(CONFIG, sparse=1.0, short=0.0))
    counts = [len({source for source, _, _ in sparse.draw(n).events}) for n in range(30)]
    assert min(counts) == 0 and max(counts) > 1, "some are a background alone"
    for number in range(20):
        scene = sparse.draw(number)
        assert len(scene.samples) == sparse.size and np.abs(scene.samples).max() < 1.0
        assert all(0 <= onset < offset <= scenes.seconds + 1e-3 for _, onset, offset in scene.events)


def test_the_stage_trains_the_attention_alone_and_resumes(
    store: AudioStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finelap_small, "LOG_EVERY", 15)
    monkeypatch.setattr(temporal, "SHARD", 16)
    model = plain_model()
    encode_scenes(model, scenes_of(store, model), tmp_path / "scenes")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "scenes").rglob("*.npy")}
    assert len(written) == 6
    encode_scenes(model, scenes_of(store, model), tmp_path / "scenes")
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "scenes").rglob("*.npy")}, "encoded once"
    scene = scenes_of(store, model).draw(17)
    with torch.no_grad():
        mel = model.mel([scene.samples - scene.samples.mean()], model.config.windows.mel_frames)
        frames = model.audio_encoder(mel).frames[0]
    kept = torch.from_numpy(np.load(tmp_path / "scenes" / "001" / "frames.npy")[1]).float()
    torch.testing.assert_close(kept, frames, rtol=2e-3, atol=2e-3)
    events = json.loads((tmp_path / "scenes" / "001" / "events.json").read_text())[1]
    assert events == [list(event) for event in scene.events]

    def train(folder: Path) -> FineLAP:
        torch.manual_seed(0)
        attentive = with_temporal_attention(plain_model(), TemporalConfig(width=8, reach=3))
        batches = TemporalBatches(tmp_path / "scenes", labels_of(store), BANK, CONFIG, attentive.frame_hop)
        run_stage(TemporalTask(attentive, CONFIG), batches, CONFIG, folder, None)
        return attentive

    trained = train(tmp_path / "run")
    untrained = with_temporal_attention(plain_model(), TemporalConfig(width=8, reach=3)).state_dict()
    after = trained.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], untrained[name])}
    assert moved == {"temporal", "temp_local", "b_local"}
    assert all(torch.equal(v, after[k]) for k, v in train(tmp_path / "run").state_dict().items()), "it was complete"
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    column = rows[0].split(",").index("frame_loss")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    assert losses[-1] < losses[0]


def test_scores_of_clips_stay_and_batches_have_the_labels_of_their_scenes(store: AudioStore, tmp_path: Path) -> None:
    model = plain_model()
    extended = with_temporal_attention(model, TemporalConfig(width=8, reach=3)).eval()
    pooled = torch.randn(4, model.audio_encoder.pooled_width)
    with torch.no_grad():
        scores = [m.clip_score(m.embed_clips(pooled), m.encode_text(list(LABELS[:3]))) for m in (model, extended)]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-3, atol=1e-5)

    encode_scenes(model, scenes_of(store, model), tmp_path)
    batches = TemporalBatches(tmp_path, labels_of(store), BANK, CONFIG, model.frame_hop)
    assert [scene for scene in batches.events] == [
        [list(event) for event in scenes_of(store, model).draw(n).events] for n in range(CONFIG.scenes)
    ]
    found, cut = batches.batch(np.random.default_rng(0)), set()
    assert all(len(set(row)) == len(row) for row in found.phrases) and found.labels.shape[:2] == (8, 4)
    for step in range(20):
        batch = batches.batch(np.random.default_rng(step))
        assert batch.labels.shape[2] == batch.frames.shape[1]
        cut.add(batch.frames.shape[1] < model.config.windows.frames)
    assert cut == {True, False}
