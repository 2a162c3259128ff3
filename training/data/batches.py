"""Builds batches for the dual-stream loss: padded audio, captions, and N phrases per row with frame labels.

A batch is a pure function of configuration, files, seed, step and rank, so that the step is all the state a run needs
to resume exactly. Labels are on the frame grid of the checkpoint's WindowConfig. Negatives are sampled from clusters
(arXiv 2604.01155, Algorithm 1).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.audio import samples_for
from model.config import SAMPLE_RATE, WindowConfig
from model.windows import frame_count
from training.data.activity import frame_labels
from training.data.audio_cache import UnreadableError
from training.data.phrase_bank import PhraseBank, phrased
from training.data.sets import AudioSet, Crop, DataConfig, DataError, Decoding, Sample, open_set

BLOCK = 4096  # rows over which the sets' shares are exact
ATTEMPTS = 50  # consecutive unreadable draws after which a set fails


@dataclass(frozen=True)
class Batch:
    """The input of one step: B rows of S samples, with P phrases each, labelled on T frames.

    S = samples_for(T × mel frames per frame).
    """

    waveforms: Tensor  # (B, S) float32 at 16 kHz, zero-padded at the end
    lengths: Tensor  # (B,) int64, samples without the padding
    captions: list[str]  # B
    phrases: list[list[str]]  # B × P, positives first; P is the same for all rows
    labels: Tensor  # (B, P, T) float32, 0 or 1, on the checkpoint's frame grid
    strong: Tensor  # (B,) bool; False: the row has no frame labels, its labels and phrases are placeholders
    meanings: list[tuple[str, ...]] = field(default_factory=list)  # B; rows of equal meaning are not negatives


@dataclass(frozen=True)
class BatchPlan:
    """Rows per step and rank (`size`), the seed, and this rank among `world` ranks."""

    size: int
    seed: int
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class _Row:
    sample: Sample
    phrases: list[str]  # P
    segments: list[tuple[tuple[float, float], ...]]  # of the positives, the first of the phrases


class Batches:
    """The batches of one rank. Together, the ranks' batches of a step are the batch that a single process would build.

    Each set is visited in a new random order per epoch; a row's set is chosen by weight. `skipped` maps the id of each
    unreadable item to the reason; without a cache it grows during training.
    """

    def __init__(
        self,
        config: DataConfig,
        root: Path,
        windows: WindowConfig,
        bank: PhraseBank | None,
        plan: BatchPlan,
        progress: bool = False,
    ) -> None:
        """`bank` may be None if no set has phrases.

        Raises DataError for sets that cannot be trained on and for phrases that are missing from the bank.
        """
        size, seed, rank, world = plan.size, plan.seed, plan.rank, plan.world
        if size < 1 or not 0 <= rank < world:
            raise DataError(f"{size} rows for rank {rank} of {world}")
        self.config, self.windows, self.size, self.seed = config, windows, size, seed
        self.rank, self.world = rank, world
        self.mel_per_frame = windows.mel_frames // windows.frames
        crop = Crop(crop_samples(config.seconds, windows), config.crop)
        cache, channel = root / config.cache if config.cache else None, 0 if config.channel == "first" else None
        decoding = Decoding(cache, max(config.workers, 1), progress, channel)
        self.sets: list[AudioSet] = [open_set(s, root, crop, decoding) for s in config.sets]
        self.skipped: dict[str, str] = {k: v for s in self.sets for k, v in s.failed.items()}
        self.bank = bank
        self._check_phrases()
        sizes = [len(s) for s in self.sets]
        by_size = config.draw == "size"
        shares = [s.config.weight * (n if by_size else 1) for s, n in zip(self.sets, sizes, strict=True)]
        self.schedule = Schedule(shares, sizes, seed)

    @property
    def epoch_steps(self) -> int:
        """Steps after which as many rows were drawn as the sets have items."""
        return -(-sum(map(len, self.sets)) // (self.size * self.world))

    def batch(self, step: int) -> Batch:
        """The batch of this rank at a step, counting from 0."""
        total = self.size * self.world
        places = [self.schedule.place(row) for row in range(step * total, (step + 1) * total)]
        longest = max(self.sets[s].length(i) for s, i in places)  # over all ranks, so that all pad to the same length
        first = self.rank * self.size
        rows = [self._row(step * total + n, *places[n]) for n in range(first, first + self.size)]
        longest = max(longest, *(len(row.sample.samples) for row in rows))
        return self._collate(rows, self.windows.frames if self.config.pad == "window" else self.frames(longest))

    def stream(self, start: int) -> Iterator[Batch]:
        """Batches from step `start`, endlessly, prepared ahead by the configured number of threads."""
        workers = self.config.workers
        step = start
        if not workers:
            while True:
                yield self.batch(step)
                step += 1
        ahead: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        try:
            while True:
                while len(ahead) <= workers:
                    ahead.append(pool.submit(self.batch, step))
                    step += 1
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def frames(self, samples: int) -> int:
        """Whole frames that cover `samples` samples, at most a window."""
        covered = math.ceil(samples / samples_per_frame(self.windows))
        return min(max(covered, frame_count(samples, self.windows)), self.windows.frames)

    def _row(self, row: int, chosen: int, item: int) -> _Row:
        """A row by its index over all steps and ranks; unreadable files are replaced by another item of the set."""
        source = self.sets[chosen]
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([self.seed, 2, row, attempt])
            if attempt:
                item = int(rng.integers(len(source)))
            try:
                sample = source.draw(item, rng)
            except UnreadableError as error:
                self.skipped[error.audio_id] = error.reason
                continue
            return _Row(sample, *self._phrases(sample, rng))
        audio_id, reason = next(reversed(self.skipped.items()))
        raise DataError(f"{source.config.name}: {ATTEMPTS} draws in a row cannot be read, such as {audio_id}: {reason}")

    def _phrases(
        self, sample: Sample, rng: np.random.Generator
    ) -> tuple[list[str], list[tuple[tuple[float, float], ...]]]:
        """P phrases, positives first, and the positives' segments."""
        config, bank = self.config, self.bank
        if bank is None:
            return [], []
        if sample.phrases is None:  # the same placeholder everywhere, so that it is encoded once
            return [bank.clusters[0][0]] * config.phrases, []
        positives = list(sample.phrases)
        if len(positives) > config.phrases:
            order = rng.permutation(len(positives)) if config.surplus == "random" else np.arange(len(positives))
            positives = [positives[i] for i in sorted(order[: config.phrases])]
        texts = [p.text for p in positives]
        for i, text in enumerate(texts):
            if rng.random() < config.swap:
                other = bank.alternative(text, rng)
                # Two phrases of a clip can share a cluster: equal texts must not have different labels.
                texts[i] = text if other in texts else other
        taken = [p.text for p in sample.phrases] + list(sample.unplaced)
        texts += bank.negatives(taken, config.phrases - len(texts), rng)
        if config.templates:
            texts = [phrased(t, rng) for t in texts]
        return texts, [p.segments for p in positives]

    def _collate(self, rows: list[_Row], frames: int) -> Batch:
        waveforms = torch.zeros(len(rows), samples_for(frames * self.mel_per_frame))
        labels = torch.zeros(len(rows), self.config.phrases if self.bank else 0, frames)
        for n, row in enumerate(rows):
            samples = row.sample.samples
            waveforms[n, : len(samples)] = torch.from_numpy(samples)
            for p, segments in enumerate(row.segments):
                labels[n, p] = torch.from_numpy(frame_labels(list(segments), frames, self.windows.frame_hop))
        return Batch(
            waveforms=waveforms,
            lengths=torch.tensor([len(row.sample.samples) for row in rows]),
            captions=[row.sample.caption for row in rows],
            phrases=[row.phrases for row in rows],
            labels=labels,
            strong=torch.tensor([row.sample.phrases is not None for row in rows]),
            meanings=[row.sample.meaning for row in rows],
        )

    def _check_phrases(self) -> None:
        """Raises DataError if the bank lacks a set's phrases or has too few clusters."""
        known = self.bank.cluster_of if self.bank else {}
        for source in self.sets:
            wanted = dict(reversed(list(source.wanted())))  # keeps the first item of each phrase
            if wanted and self.bank is None:
                raise DataError(f"{source.config.name}: its phrases need a phrase bank, but none is configured")
            unknown = [phrase for phrase in wanted if phrase not in known]
            if unknown:
                others = f", nor are {len(unknown) - 1} others" if len(unknown) > 1 else ""
                where = f"{source.config.name}: the phrase {unknown[-1]!r} of {wanted[unknown[-1]]}"
                raise DataError(f"{where} is not in the phrase bank{others}")
            clusters = self.config.phrases + source.most_unplaced()
            held = len(self.bank.clusters) if self.bank else 0
            if wanted and held < clusters:
                raise DataError(f"{self.config.phrases} phrases per clip need {clusters} clusters; the bank has {held}")


def samples_per_frame(windows: WindowConfig) -> int:
    """Samples per frame in the encoder's input, which can differ from the `frame_hop` of the labels."""
    return windows.mel_frames // windows.frames * 160


def crop_samples(seconds: float, windows: WindowConfig) -> int:
    """Samples of the longest crop: `seconds`, limited to what a window's frames cover at their `frame_hop`.

    That is 10 s on the published grid of 0.15625 s. Raises DataError for more than a whole window.
    """
    window = windows.mel_frames * 160 / SAMPLE_RATE
    if seconds > window + 1e-6:
        raise DataError(f"data.seconds: {seconds} do not fit into a window of {window} s")
    return max(round(min(seconds, windows.frames * windows.frame_hop) * SAMPLE_RATE), 1)


class Schedule:
    """Assigns an item to each row, with rows counted over all steps and ranks.

    In every BLOCK rows each set has exactly its share, at least one row, in random order. A set's rows follow a new
    permutation of its items in each epoch.
    """

    def __init__(self, weights: list[float], sizes: list[int], seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        exact = np.array(weights, dtype=float) / sum(weights) * BLOCK
        self.quota = np.maximum(np.floor(exact).astype(int), 1)
        for s in np.argsort(self.quota - exact, kind="stable")[: max(BLOCK - self.quota.sum(), 0)]:
            self.quota[s] += 1
        while self.quota.sum() > BLOCK:  # the minimum of one row per set comes from the largest sets
            self.quota[self.quota.argmax()] -= 1
        # created here, so that the caches live as long as the schedule
        self._block = lru_cache(maxsize=4)(self._draw_block)
        self._order = lru_cache(maxsize=2 * len(sizes) + 2)(self._draw_order)

    def place(self, row: int) -> tuple[int, int]:
        """(set, item) of a row."""
        block, within = divmod(row, BLOCK)
        sets, counts = self._block(block)
        chosen = int(sets[within])
        turn, position = divmod(block * int(self.quota[chosen]) + int(counts[within]), self.sizes[chosen])
        return chosen, int(self._order(chosen, turn)[position])

    def _draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The set of each row (BLOCK,), and the number of earlier rows of that set in the block (BLOCK,)."""
        sets = np.repeat(np.arange(len(self.quota)), self.quota)
        np.random.default_rng([self.seed, 0, block]).shuffle(sets)
        counts = np.empty(BLOCK, dtype=int)
        for s, quota in enumerate(self.quota):
            counts[sets == s] = np.arange(quota)
        return sets, counts

    def _draw_order(self, chosen: int, turn: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 1, chosen, turn]).permutation(self.sizes[chosen])
