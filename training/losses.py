"""Losses on unit-length embeddings: the dual-stream sigmoid loss (arXiv 2604.01155), and InfoNCE, the paper's ablation.

The sigmoid loss has two parts: clips against captions, and frames against phrases.

With `chunk`, a loss over pairs processes some rows at a time and takes each part's gradient at once, so that memory
grows with rows × chunk instead of the square of the batch. Second derivatives are then unavailable.

Each `gathered_…` loss takes a rank's own rows; every rank must have the same number.
- Its value, on every rank, is the loss of one process on the whole batch, with rows in the order of ranks.
- Its gradient is that of `world size × the rank's share`, so that gradients *averaged* over ranks, as by
  DistributedDataParallel, equal those of one process, for the embeddings as well as `temp` and `bias`. If you sum
  gradients over ranks, divide by the number of ranks.

Without a process group they equal the plain losses. All ranks must call them, and their backward passes, in the same
order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def clip_sigmoid_loss(
    clips: Tensor, texts: Tensor, temp: Tensor, bias: Tensor, same: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """Every clip against every caption, (B, D) each: −Σ log σ(±logit) / B, a scalar.

    `same` (B, B) marks positive pairs off the diagonal, such as two clips with one label; the published loss has none.
    Processes `chunk` clips at a time, or all at once if it is None.
    """
    _check(clips, texts)

    def share(rows: slice, clips: Tensor, texts: Tensor, temp: Tensor, bias: Tensor) -> Tensor:
        return _sigmoid_rows(clips[rows], texts, temp, bias, rows.start, None if same is None else same[rows])

    return _sum_over(share, len(clips), chunk, clips, texts, temp, bias) / len(clips)


def infonce_loss(clips: Tensor, texts: Tensor, temp: Tensor, chunk: int | None = None) -> Tensor:
    """Symmetric cross-entropy over the batch, (B, D) each: the mean of clip→caption and caption→clip."""
    _check(clips, texts)
    return _infonce_share((clips, texts), (clips, texts), temp, 0, chunk) / 2


def frame_sigmoid_loss(
    frames: Tensor, phrases: Tensor, labels: Tensor, temp: Tensor, bias: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Mean binary cross-entropy over (phrase, frame): frames (B, T, D), phrases (B, P, D), labels (B, P, T) of 0 and 1.

    Phrases whose `valid` (B, P) is False are ignored; if there is no valid phrase, the loss is 0.
    """
    losses = _frame_losses(frames, phrases, labels, temp, bias, valid)
    return losses.mean() if losses.numel() else losses.sum()


def gathered_clip_sigmoid_loss(
    clips: Tensor,
    texts: Tensor,
    temp: Tensor,
    bias: Tensor,
    chunk: int | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """`clip_sigmoid_loss` over the clips and captions of all ranks, (b, D) of this rank each.

    Clips with the same number in `groups` (b,), on any rank, are positive pairs too.
    """
    _check(clips, texts)
    first, everyone = _offset(len(clips), clips.device)
    all_texts = _gather(texts)
    all_groups = None if groups is None else _gather(groups)

    def share(rows: slice, clips: Tensor, all_texts: Tensor, temp: Tensor, bias: Tensor) -> Tensor:
        same = None if groups is None or all_groups is None else groups[rows, None] == all_groups
        return _sigmoid_rows(clips[rows], all_texts, temp, bias, first + rows.start, same)

    return _sum_over_ranks(_sum_over(share, len(clips), chunk, clips, all_texts, temp, bias) / everyone)


def gathered_infonce_loss(clips: Tensor, texts: Tensor, temp: Tensor, chunk: int | None = None) -> Tensor:
    """`infonce_loss` over the clips and captions of all ranks, (b, D) of this rank each."""
    _check(clips, texts)
    first, everyone = _offset(len(clips), clips.device)
    share = _infonce_share((clips, texts), (_gather(clips), _gather(texts)), temp, first, chunk)
    return _sum_over_ranks(share * len(clips) / everyone / 2)


def gathered_frame_sigmoid_loss(
    frames: Tensor, phrases: Tensor, labels: Tensor, temp: Tensor, bias: Tensor, valid: Tensor | None = None
) -> Tensor:
    """`frame_sigmoid_loss` over the rows of all ranks, given this rank's: a mean over the valid phrases of all ranks.

    Ranks may have different numbers of valid phrases. Nothing is gathered, as a frame is compared only with its own
    clip's phrases.
    """
    losses = _frame_losses(frames, phrases, labels, temp, bias, valid)
    return _sum_over_ranks(losses.sum() / _total(losses.numel(), losses.device).clamp_min(1))


def per_rank_gradient(embeddings: Tensor) -> Tensor:
    """The embeddings, with a gradient divided by the number of ranks; for the inputs of a gathered clip loss.

    The published code gathers embeddings without a gradient and averages gradients over ranks, so that on W ranks the
    networks get 1/W of the clip loss's gradient, but temperature and bias get all of it.
    """
    return embeddings if _ranks() == 1 else _ScaledGradient.apply(embeddings, 1 / _ranks())


def _check(clips: Tensor, texts: Tensor) -> None:
    if clips.shape != texts.shape:
        raise ValueError(f"clips {tuple(clips.shape)} and captions {tuple(texts.shape)} must have the same shape")


def _sigmoid_rows(clips: Tensor, texts: Tensor, temp: Tensor, bias: Tensor, first: int, same: Tensor | None) -> Tensor:
    """−Σ log σ(±logit) over clips (R, D) against all captions (B, D); row r's own caption has index `first` + r."""
    logits = clips @ texts.T / temp + bias
    true = torch.zeros_like(logits, dtype=torch.bool)
    true.diagonal(first).fill_(True)
    if same is not None:
        true = true | same
    signs = torch.where(true, 1.0, -1.0)
    return -F.logsigmoid(signs * logits).sum()


def _infonce_share(
    own: tuple[Tensor, Tensor], everyone: tuple[Tensor, Tensor], temp: Tensor, first: int, chunk: int | None
) -> Tensor:
    """Cross-entropy of this rank's clips among all captions, and of its captions among all clips: the sum of two means.

    `own` are this rank's clips and captions (b, D), `everyone` those of all ranks (B, D), where they start at `first`.
    """
    (clips, texts), (all_clips, all_texts) = own, everyone

    def share(rows: slice, queries: Tensor, keys: Tensor, temp: Tensor) -> Tensor:
        target = torch.arange(first + rows.start, first + rows.stop, device=queries.device)
        return F.cross_entropy(queries[rows] @ keys.T / temp, target, reduction="sum")

    to_texts = _sum_over(share, len(clips), chunk, clips, all_texts, temp)
    to_clips = _sum_over(share, len(clips), chunk, texts, all_clips, temp)
    return (to_texts + to_clips) / len(clips)


def _frame_losses(
    frames: Tensor, phrases: Tensor, labels: Tensor, temp: Tensor, bias: Tensor, valid: Tensor | None
) -> Tensor:
    """Binary cross-entropy of each (phrase, frame): (B, P, T), or (valid phrases, T)."""
    logits = phrases @ frames.transpose(1, 2) / temp + bias
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return losses if valid is None else losses[valid]


def _sum_over(share: Callable[..., Tensor], rows: int, chunk: int | None, *inputs: Tensor) -> Tensor:
    """The sum of `share(part, *inputs)` over `rows` rows, at once or in parts of `chunk` rows."""
    if chunk is None:
        return share(slice(0, rows), *inputs)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, found {chunk}")
    return _SumOfParts.apply(share, rows, chunk, *inputs)


class _SumOfParts(torch.autograd.Function):
    """The sum over parts of rows, with the gradient taken part by part in the forward pass.

    Activation checkpointing would compute each part twice and hold its intermediate results for longer.
    """

    @staticmethod
    def forward(ctx: Any, share: Callable[..., Tensor], rows: int, chunk: int, *inputs: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[3:]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(inputs, wanted, strict=True)]
        learned = [leaf for leaf in leaves if leaf.requires_grad]
        gradients = [torch.zeros_like(leaf) for leaf in learned]
        total = inputs[0].new_zeros(())
        for at in range(0, rows, chunk):
            with torch.set_grad_enabled(bool(learned)):
                part = share(slice(at, min(at + chunk, rows)), *leaves)
            total += part.detach()
            if learned:
                for gradient, piece in zip(gradients, torch.autograd.grad(part, learned), strict=True):
                    gradient += piece
        ctx.save_for_backward(*gradients)
        ctx.wanted = wanted
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients = iter(ctx.saved_tensors)
        return None, None, None, *(next(gradients) * outer[0] if need else None for need in ctx.wanted)


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _total(count: int, device: torch.device) -> Tensor:
    """The sum of a number over ranks, as a tensor."""
    total = torch.tensor(float(count), dtype=torch.float64, device=device)
    if _ranks() > 1:
        dist.all_reduce(total)
    return total.float()


def _offset(rows: int, device: torch.device) -> tuple[int, int]:
    """The index of this rank's first row in the whole batch, and the batch's rows. ValueError if ranks' rows differ."""
    ranks = _ranks()
    if ranks == 1:
        return 0, rows
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(ranks)]
    dist.all_gather(counts, torch.tensor([rows], device=device))
    if len({int(c) for c in counts}) != 1:
        raise ValueError(f"ranks have batches of different sizes: {[int(c) for c in counts]}")
    return dist.get_rank() * rows, ranks * rows


def _gather(local: Tensor) -> Tensor:
    """Rows of all ranks in order of ranks; gradients flow back to the rank of each row."""
    return local if _ranks() == 1 else _Gather.apply(local)


def _sum_over_ranks(share: Tensor) -> Tensor:
    """The sum of the ranks' shares, with the gradient of this rank's share times the number of ranks."""
    return share if _ranks() == 1 else _SumOfShares.apply(share)


class _Gather(torch.autograd.Function):
    """Rows (b, …) → (ranks × b, …). Backward sums every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(_ranks())]
        dist.all_gather(parts, local)
        ctx.rows = len(local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # reduce_scatter would transfer half as much, but gloo may lack it.
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        first = dist.get_rank() * ctx.rows
        return whole[first : first + ctx.rows]


class _ScaledGradient(torch.autograd.Function):
    """The identity, with the gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class _SumOfShares(torch.autograd.Function):
    """A rank's share of a loss → the loss, the same on every rank."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        total = share.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * _ranks()
