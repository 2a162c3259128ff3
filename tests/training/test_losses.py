"""The losses reproduce published values, and their extensions reduce to the plain losses."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from training.losses import (
    clip_sigmoid_loss,
    frame_sigmoid_loss,
    gathered_clip_sigmoid_loss,
    gathered_frame_sigmoid_loss,
    gathered_infonce_loss,
    infonce_loss,
)


@pytest.fixture(scope="module")
def golden(shared_dir: Path) -> dict[str, torch.Tensor]:
    with np.load(shared_dir / "reference" / "golden.npz") as arrays:
        return {k: torch.from_numpy(arrays[k]) for k in arrays if k.startswith("loss_")}


@pytest.mark.parametrize(("row", "bias"), [(0, -10.0), (1, -1.0)])
def test_sigmoid_losses_match_published_values(golden: dict[str, torch.Tensor], row: int, bias: float) -> None:
    temp, b = torch.tensor(0.1), torch.tensor(bias)
    clip = clip_sigmoid_loss(golden["loss_inputs_a"], golden["loss_inputs_t"], temp, b)
    assert float(clip) == pytest.approx(float(golden["loss_clip_sigmoid"][row]), rel=1e-5)
    inputs = [golden[f"loss_inputs_{k}"] for k in ("frames", "phrases", "labels")]
    frame = frame_sigmoid_loss(*inputs, temp, b)
    assert float(frame) == pytest.approx(float(golden["loss_frame_sigmoid"][row]), rel=1e-5)


def test_infonce_matches_published_values(golden: dict[str, torch.Tensor]) -> None:
    loss = infonce_loss(golden["loss_inputs_a"], golden["loss_inputs_t"], torch.tensor(0.1))
    assert float(loss) == pytest.approx(float(golden["loss_infonce"][0]), rel=1e-5)


def test_clip_loss_equals_a_loop_over_pairs() -> None:
    torch.manual_seed(0)
    clips, texts = (torch.nn.functional.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    temp, bias = torch.tensor(0.2), torch.tensor(-3.0)
    same = torch.zeros(5, 5, dtype=torch.bool)
    same[1, 3] = same[3, 1] = True
    total = 0.0
    for i in range(5):
        for j in range(5):
            logit = float(clips[i] @ texts[j]) / 0.2 - 3.0
            probability = 1 / (1 + np.exp(-logit))
            total -= np.log(probability if i == j or bool(same[i, j]) else 1 - probability)
    assert float(clip_sigmoid_loss(clips, texts, temp, bias, same)) == pytest.approx(total / 5, rel=1e-4)


def test_invalid_phrases_are_ignored() -> None:
    torch.manual_seed(0)
    frames, phrases = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
    labels = (torch.rand(2, 3, 4) > 0.5).float()
    temp, bias = torch.tensor(1.0), torch.tensor(0.0)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    masked = frame_sigmoid_loss(frames, phrases, labels, temp, bias, valid)
    phrases[~valid] = 100.0
    assert torch.equal(masked, frame_sigmoid_loss(frames, phrases, labels, temp, bias, valid))
    assert not torch.allclose(masked, frame_sigmoid_loss(frames, phrases, labels, temp, bias))


def test_frame_loss_is_zero_without_valid_phrases() -> None:
    frames, phrases = torch.randn(2, 4, 8, requires_grad=True), torch.randn(2, 3, 8)
    none = torch.zeros(2, 3, dtype=torch.bool)
    for loss in (frame_sigmoid_loss, gathered_frame_sigmoid_loss):
        value = loss(frames, phrases, torch.zeros(2, 3, 4), torch.tensor(1.0), torch.tensor(0.0), none)
        (gradient,) = torch.autograd.grad(value, frames)
        assert float(value.detach()) == 0 and not gradient.any()


def gradients_of(loss: Callable[..., torch.Tensor], count: int, **options: object) -> list[torch.Tensor]:
    """The loss of 11 random pairs, and its gradient in each of `count` inputs: clips, texts, temp, bias."""
    torch.manual_seed(3)
    units = [torch.nn.functional.normalize(torch.randn(11, 8), dim=-1) for _ in range(2)]
    inputs = [t.requires_grad_() for t in (*units, torch.tensor(0.1), torch.tensor(-3.0))][:count]
    value = loss(*inputs, **options)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_chunked_losses_equal_whole_losses(chunk: int) -> None:
    same = torch.rand(11, 11, generator=torch.Generator().manual_seed(0)) > 0.8
    for loss, count, options in (
        (clip_sigmoid_loss, 4, {}),
        (clip_sigmoid_loss, 4, {"same": same}),
        (infonce_loss, 3, {}),
    ):
        whole, parts = gradients_of(loss, count, **options), gradients_of(loss, count, chunk=chunk, **options)
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_gathered_losses_equal_plain_losses_in_one_process() -> None:
    groups = torch.arange(11) % 4
    pairs = {"same": groups[:, None] == groups}
    torch.testing.assert_close(gradients_of(gathered_clip_sigmoid_loss, 4), gradients_of(clip_sigmoid_loss, 4))
    grouped = gradients_of(gathered_clip_sigmoid_loss, 4, groups=groups)
    torch.testing.assert_close(grouped, gradients_of(clip_sigmoid_loss, 4, **pairs))
    torch.testing.assert_close(gradients_of(gathered_infonce_loss, 3), gradients_of(infonce_loss, 3))


def test_different_numbers_of_clips_and_captions_are_errors() -> None:
    temp, bias = torch.tensor(0.1), torch.tensor(-10.0)
    with pytest.raises(ValueError, match="must have the same shape"):
        clip_sigmoid_loss(torch.ones(4, 8), torch.ones(3, 8), temp, bias)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        clip_sigmoid_loss(torch.ones(4, 8), torch.ones(4, 8), temp, bias, chunk=0)


BATCH = 8192


def peak_growth() -> float:
    """The peak growth of this process, in MB, over forward and backward of the chunked losses at batch 8,192."""
    torch.set_num_threads(1)
    clips, texts = (torch.nn.functional.normalize(torch.randn(BATCH, 16), dim=-1).requires_grad_() for _ in range(2))
    temp, bias = torch.tensor(0.1, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    clip_sigmoid_loss(clips[:256], texts[:256], temp, bias, chunk=32).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clip_sigmoid_loss(clips, texts, temp, bias, chunk=32).backward()
    infonce_loss(clips, texts, temp, chunk=32).backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def test_memory_at_batch_8192_stays_far_below_the_matrix_of_pairs(repo_dir: Path) -> None:
    # In a separate process, as the high-water mark of this one includes other tests.
    command, environment = [sys.executable, __file__], os.environ | {"PYTHONPATH": str(repo_dir)}
    found = float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    one_matrix = BATCH * BATCH * 4 / 2**20  # 256 MB; the plain loss allocates several
    assert found < one_matrix / 4, f"{found:.0f} MB"


if __name__ == "__main__":
    print(peak_growth())
