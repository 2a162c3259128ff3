"""The published model's numbers, reproduced through our checkpoints from its weights in each of their namings.

The weights are drawn from the tensors' names at the real size (244 million numbers), and the expected values are what
the published code computes with them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model import FineLAP
from model.conversion import ConversionReport, convert
from model.windows import plan_windows

pytestmark = pytest.mark.slow

SECONDS = {1: 10.0, 2: 3.3, 3: 14.0}
TOKENS = ([0, 101, 2023, 555, 2], [0, 7, 8, 9, 10, 11, 12, 2], [0, 31414, 232, 6, 42, 16, 10, 2])
IDS = torch.tensor([ids + [1] * (8 - len(ids)) for ids in TOKENS])
MASK = (IDS != 1).long()


def no_tokenizer(repo: str, revision: str | None, patterns: list[str]) -> str:
    raise OSError(f"{repo} is not fetched in tests")


def cosine(a: Any, b: Any) -> float:
    """The smallest cosine between the rows of two arrays."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


@dataclass(frozen=True)
class Published:
    """The published weights and their conversion."""

    fill: ModuleType
    golden: Any
    state: dict[str, Tensor]
    folder: Path  # converted from the newer naming
    report: ConversionReport
    model: FineLAP
    scratch: Path

    def signal(self, seed: int) -> np.ndarray:
        """The test signal minus its mean, as the published model expects it."""
        waveform = self.fill.waveform(seed, SECONDS[seed])
        return waveform - waveform.mean()


@pytest.fixture(scope="module")
def published(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    reference = shared_dir / "reference"
    spec = importlib.util.spec_from_file_location("fill_state", reference / "fill_state.py")
    assert spec is not None and spec.loader is not None
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    scratch = tmp_path_factory.mktemp("published")
    try:
        state = fill.published_state()
        torch.save(state, scratch / "finelap.pt")
        report = convert(scratch / "finelap.pt", scratch / "converted", download=no_tokenizer)
        (scratch / "finelap.pt").unlink()  # a gigabyte each
        model = FineLAP.from_pretrained(scratch / "converted")
        golden = np.load(reference / "golden.npz")
        yield Published(fill, golden, state, scratch / "converted", report, model, scratch)
    finally:
        shutil.rmtree(scratch)


def test_conversion_accounts_for_every_tensor(published: Published) -> None:
    report = published.report
    assert report.tensors == 389 == report.used + len(report.computed) + len(report.ignored)
    assert [name.rsplit(".", 2)[-2] for name in report.ignored] == ["fc_norm", "fc_norm", "head", "head"]
    assert len(report.computed) == 1 and report.computed[0].endswith("fixed_positional_encoder.positions")
    assert published.model.stamp == report.stamp
    assert published.model.frame_hop == 0.15625 and published.model.dim == 1024


@pytest.mark.parametrize("seed", SECONDS)
def test_log_mel(published: Published, seed: int) -> None:
    mel = published.model.mel([published.signal(seed)], 1024)[0]
    assert np.abs(mel[::8].numpy() - published.golden[f"mel_{seed}"]).max() <= 1e-4


@pytest.mark.parametrize("seed", SECONDS)
def test_clip_frames_and_scores(published: Published, seed: int) -> None:
    model, golden = published.model, published.golden
    ((clip, frames),) = model.encode_windows([published.signal(seed)[:164_080]])
    assert cosine(clip, golden[f"clip_{seed}"]) >= 0.9999
    assert cosine(frames, golden[f"frames_{seed}"]) >= 0.9999
    # the scores are near 4e-5, so the ratio is compared
    clip_scores, frame_scores = model.clip_score(clip, golden["text"]), model.frame_score(frames, golden["text"])
    np.testing.assert_allclose(clip_scores[0].numpy(), golden[f"clip_scores_{seed}"], rtol=1e-4)
    np.testing.assert_allclose(frame_scores.numpy(), golden[f"frame_scores_{seed}"], rtol=1e-4)


def test_text(published: Published) -> None:
    assert cosine(published.model.encode_tokens(IDS, MASK), published.golden["text"]) >= 0.9999


def test_recordings_of_any_length_agree_where_the_published_model_is_defined(published: Published) -> None:
    model, golden = published.model, published.golden
    waveforms = [published.fill.waveform(seed, SECONDS[seed]) for seed in SECONDS]
    whole, short, long = model.encode_audio(waveforms, 16_000)
    assert [len(item.frames) for item in (whole, short, long)] == [64, 22, 90]
    assert cosine(whole.clip, golden["clip_1"]) >= 0.9999 and cosine(whole.frames, golden["frames_1"]) >= 0.9999
    assert cosine(short.clip, golden["clip_2"]) >= 0.9999 and cosine(short.frames, golden["frames_2"][:22]) >= 0.9999
    first = plan_windows(14 * 16_000, model.config.windows)[0].keep
    assert first.start == 0 and first.stop > 30
    assert cosine(long.frames[first], golden["frames_3"][first]) >= 0.9999


@pytest.mark.parametrize("naming", ["older", "hub"])
def test_the_other_namings_give_the_same_model(published: Published, namings: Any, naming: str) -> None:
    state = getattr(namings, naming)(published.state)
    assert state.keys() != published.state.keys()
    source = published.scratch / naming
    source.mkdir()
    try:
        if naming == "hub":
            save_file(state, source / "model.safetensors")
            (source / "config.json").write_text('{"model_type": "finelap"}')
            model = FineLAP.from_pretrained(source, download=no_tokenizer)
        else:
            torch.save({"state_dict": state}, source / "older.pt")
            model = FineLAP.from_pretrained(source / "older.pt", download=no_tokenizer)
    finally:
        shutil.rmtree(source)
    ours = published.model.state_dict()
    assert model.state_dict().keys() == ours.keys()
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, ours[name])] == []
    assert model.stamp == published.report.stamp
    ((clip, frames),) = model.encode_windows([published.signal(2)])
    assert cosine(clip, published.golden["clip_2"]) >= 0.9999
    assert cosine(frames, published.golden["frames_2"]) >= 0.9999


BFLOAT16 = """
import sys, numpy as np, torch
from model import FineLAP
folder, given, out = sys.argv[1:]
arrays = np.load(given)
model = FineLAP.from_pretrained(folder, dtype=torch.bfloat16)
((clip, frames),) = model.encode_windows([arrays["signal"]])
text = model.encode_tokens(arrays["ids"], arrays["mask"])
np.savez(out, clip=clip, frames=frames, text=text)
"""


def test_bfloat16(published: Published, repo_dir: Path) -> None:
    """Runs in a child process without AMX, because some virtual machines advertise it and kill those that use it."""
    given, out = published.scratch / "given.npz", published.scratch / "bfloat16.npz"
    np.savez(given, signal=published.signal(1), ids=IDS, mask=MASK)
    command = [sys.executable, "-c", BFLOAT16, str(published.folder), str(given), str(out)]
    subprocess.run(command, check=True, cwd=repo_dir, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"})
    found = np.load(out)
    for name, golden in (("clip", "clip_1"), ("frames", "frames_1"), ("text", "text")):
        assert found[name].dtype == np.float32
        assert cosine(found[name], published.golden[golden]) >= 0.999, name


@pytest.mark.weights
def test_the_real_weights_load_completely() -> None:
    path = os.environ.get("FINELAP_PUBLISHED_WEIGHTS")
    if not path:
        pytest.skip("set FINELAP_PUBLISHED_WEIGHTS to the published file or folder")
    model = FineLAP.from_pretrained(path, download=no_tokenizer)
    assert (model.dim, model.frame_hop) == (1024, 0.15625)
    assert 0 < model.temp_global < 1 and 0 < model.temp_local < 1
    (item,) = model.encode_audio([np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.1], 16_000)
    assert item.frames.shape == (20, 1024) and item.frames.isfinite().all()
