"""Two ranks with half the batch each compute the loss and gradients of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import losses

pytestmark = pytest.mark.slow

RANKS, ROWS, FRAMES, PHRASES = 2, 10, 6, 4
KINDS = ("clip", "clip chunked", "clip grouped", "infonce", "infonce chunked", "frame", "frame valid")
PUBLISHED = ("published", "published chunked", "published slow")


class Towers(nn.Module):
    """Two linear towers and the learned scales: all that a loss sees of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.text = nn.Linear(12, 8), nn.Linear(10, 8)
        self.temp, self.bias = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(-2.0))

    def forward(self, kind: str, batch: dict[str, Tensor], gathered: bool) -> Tensor:
        prefix = "gathered_" if gathered else ""
        sigmoid: Callable[..., Tensor] = getattr(losses, f"{prefix}clip_sigmoid_loss")
        infonce: Callable[..., Tensor] = getattr(losses, f"{prefix}infonce_loss")
        frame: Callable[..., Tensor] = getattr(losses, f"{prefix}frame_sigmoid_loss")
        frames, phrases = (F.normalize(t, dim=-1) for t in (self.audio(batch["audio"]), self.text(batch["text"])))
        clips, texts = F.normalize(frames.mean(1), dim=-1), phrases[:, 0]
        chunk = 3 if "chunked" in kind else None
        if kind == "published slow":
            return slow_published(clips, texts, self.temp, self.bias)
        if kind.startswith("published"):
            clips, texts = losses.per_rank_gradient(clips), losses.per_rank_gradient(texts)
            return sigmoid(clips, texts, self.temp, self.bias, chunk=chunk)
        # DistributedDataParallel needs a gradient for every parameter, so unused scales get one of zero.
        unused = 0 * self.bias
        if kind == "clip grouped":
            ids = batch["groups"]
            groups = {"groups": ids} if gathered else {"same": ids[:, None] == ids}
            return sigmoid(clips, texts, self.temp, self.bias, **groups)
        if kind.startswith("clip"):
            return sigmoid(clips, texts, self.temp, self.bias, chunk=chunk)
        if kind.startswith("infonce"):
            return infonce(clips, texts, self.temp, chunk=chunk) + unused
        valid = batch["valid"] if "valid" in kind else None
        return frame(frames, phrases, batch["labels"], self.temp, self.bias, valid)


def slow_published(clips: Tensor, texts: Tensor, temp: Tensor, bias: Tensor) -> Tensor:
    """The released code's loss: embeddings gathered without gradients, this rank's own in their place among them."""
    everyone = []
    for own in (clips, texts):
        parts = [torch.empty_like(own) for _ in range(RANKS)]
        dist.all_gather(parts, own.detach().contiguous())
        parts[dist.get_rank()] = own
        everyone.append(torch.cat(parts))
    return losses.clip_sigmoid_loss(*everyone, temp, bias)


def whole_batch() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return {
        "audio": torch.randn(ROWS, FRAMES, 12, generator=draw),
        "text": torch.randn(ROWS, PHRASES, 10, generator=draw),
        "labels": (torch.rand(ROWS, PHRASES, FRAMES, generator=draw) > 0.6).float(),
        "groups": torch.randint(0, 4, (ROWS,), generator=draw),
        # The ranks have different numbers of valid phrases, so a mean of means would be another number.
        "valid": torch.arange(ROWS)[:, None].expand(ROWS, PHRASES) < 7,
    }


def towers() -> Towers:
    torch.manual_seed(1)
    return Towers()


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    mine = slice(rank * ROWS // RANKS, (rank + 1) * ROWS // RANKS)
    found = {}
    for kind in (*KINDS, *PUBLISHED):
        model = DistributedDataParallel(towers())
        value = model(kind, {k: v[mine] for k, v in whole_batch().items()}, True)
        value.backward()
        found[kind] = [value.detach()] + [p.grad for p in model.module.parameters()]
    try:
        losses.gathered_infonce_loss(*torch.randn(2, 3 + rank, 8), torch.tensor(0.1))
    except ValueError as error:
        found["error"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory, repo_dir: Path) -> list[dict]:
    folder, environment = tmp_path_factory.mktemp("ranks"), os.environ | {"PYTHONPATH": str(repo_dir)}
    command = [sys.executable, __file__, str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(RANKS)]
    assert [process.wait(timeout=300) for process in processes] == [0] * RANKS
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_one_process(of_ranks: list[dict], kind: str) -> None:
    model = towers()
    value = model(kind, whole_batch(), False)
    value.backward()
    expected = [value.detach()] + [p.grad for p in model.parameters()]
    assert len(expected) == 7 and expected[1].abs().max() > 1e-3
    for found in of_ranks:
        torch.testing.assert_close(found[kind], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_published_gradient_is_one_share_of_the_whole(of_ranks: list[dict], kind: str) -> None:
    model = towers()
    value = model("clip", whole_batch(), False)
    value.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    assert gradients["audio.weight"].abs().max() > 1e-3 and gradients["bias"].abs() > 1e-3
    expected = [value.detach()] + [g if n in ("temp", "bias") else g / RANKS for n, g in gradients.items()]
    for found in of_ranks:
        torch.testing.assert_close(found[kind], expected, rtol=1e-5, atol=1e-5)


def test_ranks_with_different_numbers_of_rows_are_errors(of_ranks: list[dict]) -> None:
    for found in of_ranks:
        assert found["error"] == "ranks have batches of different sizes: [3, 4]"


if __name__ == "__main__":
    one_rank(int(sys.argv[2]), sys.argv[1])
