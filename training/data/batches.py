"""Batches for the dual-stream loss: padded audio, captions, and for each row N phrases with their frame labels.

A batch is a pure function of configuration, files, seed, step and rank, so that a run resumes exactly with no state but
its step. Knows nothing of models: the clock of the labels is the checkpoint's WindowConfig. Negatives are cluster-based
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
from model.config import WindowConfig
from model.windows import frame_count
from training.data.manifests import SAMPLE_RATE, UnreadableError
from training.data.phrase_bank import PhraseBank, phrased
from training.data.sets import AudioSet, DataConfig, DataError, Sample, open_set
from training.simulation.simulate import frame_labels

BLOCK = 4096  # rows over which the sets' shares are exact
ATTEMPTS = 50  # unreadable draws in a row before a set is given up


@dataclass(frozen=True)
class Batch:
    """What one step learns from. T frames of S = samples_for(T × mel frames per frame) samples."""

    waveforms: Tensor  # (B, S) float32 at 16 kHz, zeros after each row's end
    lengths: Tensor  # (B,) int64, samples before the zeros
    captions: list[str]  # B
    phrases: list[list[str]]  # B × P, positives first; P is the same for all
    labels: Tensor  # (B, P, T) float32, 0 or 1, on the checkpoint's own grid
    strong: Tensor  # (B,) bool; False: nothing is known of the row's frames, its labels and phrases are blanks
    meanings: list[tuple[str, ...]] = field(default_factory=list)  # B; rows of equal meaning are no negatives


@dataclass(frozen=True)
class _Row:
    sample: Sample
    phrases: list[str]  # P
    segments: list[tuple[tuple[float, float], ...]]  # of the positives, the first of the phrases


class Batches:
    """`size` rows a step and rank. The ranks' batches of a step are, in order, the one batch that a single process with
    `size * world` rows would make: the same rows, padded alike.

    Every set goes through all its items in a new order each time round; which set a row comes from is by weight.
    `skipped` names what cannot be read, audio_id → reason; it grows only without a cache. DataError, at once, for sets
    that cannot be trained on and phrases that the bank does not have. `bank` may be None where no set has phrases.
    """

    def __init__(
        self,
        config: DataConfig,
        root: Path,
        windows: WindowConfig,
        bank: PhraseBank | None,
        size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        progress: bool = False,
    ) -> None:
        if size < 1 or not 0 <= rank < world:
            raise DataError(f"{size} rows for rank {rank} of {world}")
        self.config, self.windows, self.size, self.seed = config, windows, size, seed
        self.rank, self.world = rank, world
        self.mel_per_frame = windows.mel_frames // windows.frames
        crop = crop_samples(config.seconds, windows)
        cache = root / config.cache if config.cache else None
        centre, threads = config.crop == "centre", max(config.workers, 1)
        self.sets: list[AudioSet] = [open_set(s, root, cache, crop, centre, threads, progress) for s in config.sets]
        self.skipped: dict[str, str] = {k: v for s in self.sets for k, v in s.failed.items()}
        self.bank = bank
        self._check_phrases()
        self.schedule = Schedule([s.config.weight for s in self.sets], [len(s) for s in self.sets], seed)

    @property
    def epoch_steps(self) -> int:
        """Steps that take as many rows as there are items in all sets together."""
        return -(-sum(map(len, self.sets)) // (self.size * self.world))

    def batch(self, step: int) -> Batch:
        """The batch of this rank at a step, counted from 0."""
        total = self.size * self.world
        places = [self.schedule.place(row) for row in range(step * total, (step + 1) * total)]
        longest = max(self.sets[s].length(i) for s, i in places)  # of all ranks, so that all pad alike
        first = self.rank * self.size
        rows = [self._row(step * total + n, *places[n]) for n in range(first, first + self.size)]
        longest = max(longest, *(len(row.sample.samples) for row in rows))
        return self._collate(rows, self.windows.frames if self.config.pad == "window" else self.frames(longest))

    def stream(self, start: int) -> Iterator[Batch]:
        """Batches from step `start` on, without end, made ahead by the configured number of threads."""
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
        """Frames that hold `samples` samples: whole ones, at most a window's."""
        audible = math.ceil(samples / samples_per_frame(self.windows))
        return min(max(audible, frame_count(samples, self.windows)), self.windows.frames)

    def _row(self, row: int, chosen: int, item: int) -> _Row:
        """One row by its number over all steps and ranks. Where a file turns out unreadable another takes its place."""
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
        """N phrases, positives first, and the positives' segments."""
        config, bank = self.config, self.bank
        if bank is None:
            return [], []
        if sample.phrases is None:  # one blank text for all such rows, so that it is encoded once
            return [bank.clusters[0][0]] * config.phrases, []
        positives = list(sample.phrases)
        if len(positives) > config.phrases:
            positives = [positives[i] for i in sorted(rng.permutation(len(positives))[: config.phrases])]
        texts = [p.text for p in positives]
        for i, text in enumerate(texts):
            if rng.random() < config.swap:
                other = bank.alternative(text, rng)
                # Two phrases of a clip may be of one cluster: the same words must not have two truths.
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
        """DataError where a set's phrases are not in the bank, or the bank has too few clusters to choose from."""
        known = self.bank.cluster_of if self.bank else {}
        for source in self.sets:
            wanted = dict(reversed(list(source.wanted())))  # with the first item of each
            if wanted and self.bank is None:
                raise DataError(f"{source.config.name}: its phrases need a phrase bank, and there is none")
            unknown = [phrase for phrase in wanted if phrase not in known]
            if unknown:
                others = f", nor are {len(unknown) - 1} others" if len(unknown) > 1 else ""
                where = f"{source.config.name}: the phrase {unknown[-1]!r} of {wanted[unknown[-1]]}"
                raise DataError(f"{where} is not in the phrase bank{others}")
            clusters = self.config.phrases + source.most_unplaced()
            held = len(self.bank.clusters) if self.bank else 0
            if wanted and held < clusters:
                raise DataError(f"{self.config.phrases} phrases a clip want {clusters} clusters; the bank has {held}")


def samples_per_frame(windows: WindowConfig) -> int:
    """Samples from one frame to the next as the encoder sees them, whatever the labels' clock says."""
    return windows.mel_frames // windows.frames * 160


def crop_samples(seconds: float, windows: WindowConfig) -> int:
    """Samples of the longest crop: `seconds`, but no more than a window's frames cover by their own clock.

    On the published grid of 0.15625 s that is 10 s. More than a whole window is a DataError.
    """
    window = windows.mel_frames * 160 / SAMPLE_RATE
    if seconds > window + 1e-6:
        raise DataError(f"data.seconds: {seconds} do not fit into a window of {window} s")
    return max(round(min(seconds, windows.frames * windows.frame_hop) * SAMPLE_RATE), 1)


class Schedule:
    """Which item each row is of, rows counted over all steps and ranks.

    In every BLOCK rows each set has exactly its share, at least one row, in random order; a set's own rows go through
    a new permutation of its items each time round.
    """

    def __init__(self, weights: list[float], sizes: list[int], seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        exact = np.array(weights, dtype=float) / sum(weights) * BLOCK
        self.quota = np.maximum(np.floor(exact).astype(int), 1)
        for s in np.argsort(self.quota - exact, kind="stable")[: max(BLOCK - self.quota.sum(), 0)]:
            self.quota[s] += 1
        while self.quota.sum() > BLOCK:  # sets too small for a row of their own took one from the largest
            self.quota[self.quota.argmax()] -= 1
        # made inside, so that a cache lives as long as its schedule
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
        """(BLOCK,) the set of each row, and how many rows of that set come before it in the block."""
        sets = np.repeat(np.arange(len(self.quota)), self.quota)
        np.random.default_rng([self.seed, 0, block]).shuffle(sets)
        counts = np.empty(BLOCK, dtype=int)
        for s, quota in enumerate(self.quota):
            counts[sets == s] = np.arange(quota)
        return sets, counts

    def _draw_order(self, chosen: int, turn: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 1, chosen, turn]).permutation(self.sizes[chosen])
