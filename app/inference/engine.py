"""The model behind two lanes, audio windows and texts, batched over all callers.

Audio is mono float32 at the model's sample rate; embeddings have unit length.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.inference.batcher import Batcher, BatchLimits, BatchObservers, BatchReport, CallReport, Device, Urgency
from app.settings import DEFAULT_CHECKPOINT, Settings
from model.concepts.head import HeadScores, Scores
from model.external.contract import Model
from model.windows import frame_count, window_samples

_TEXT_BATCH = 64  # texts
_TEXT_CACHE = 4096  # embeddings
_TOKEN_CACHE = 10_000  # words
_NO_WORD = "\U00012000"  # cuneiform, which no vocabulary has
_CHECK_TTL = 1.0  # seconds for which a passed check is valid
_PROBE_SAMPLES = 8_000  # half a second
_BATCH_SECONDS = 0.25  # maximum duration of a batch, and so of a search's wait for an audio batch

WindowEmbedding = tuple[np.ndarray, np.ndarray]  # clip (D,), frames (T, D)


def load_model(settings: Settings) -> Model:
    """Loads the configured checkpoint, FineLAP or another family, on the configured device. Raises CheckpointError.

    The device `auto` is a GPU if there is one. The dtype `auto` is bfloat16 on a GPU, elsewhere float32, or bfloat16 if
    model.cpu.bfloat16 finds that it is faster and yields the same embeddings. Other families run in float32 with
    `auto`. Where model.cpu.layers says so, oneDNN computes the linear layers.
    """
    import torch

    from model import FineLAP
    from model.cpu.bfloat16 import use_bfloat16
    from model.cpu.layers import use_onednn
    from model.external.contract import load_external

    device, dtype, checkpoint = settings.device, settings.dtype, find_checkpoint(settings.checkpoint)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = "float32" if dtype == "auto" else dtype
    other = load_external(checkpoint, device=device, dtype=wanted, sliding=settings.sliding_frames)
    if other is not None:
        return other
    if dtype != "auto":
        return use_onednn(FineLAP.from_pretrained(checkpoint, device=device, dtype=getattr(torch, dtype)))
    if device.startswith("cuda"):
        return FineLAP.from_pretrained(checkpoint, device=device, dtype=torch.bfloat16)
    return use_onednn(use_bfloat16(FineLAP.from_pretrained(checkpoint, device=device)))


def find_checkpoint(name: str) -> str:
    """The bundled checkpoint's folder if `name` is its default name and is not in the current folder, else `name`.

    Raises CheckpointError if the bundled checkpoint is nowhere: the name is no hub id.
    """
    if name != DEFAULT_CHECKPOINT or Path(name).is_dir():
        return name
    bundled = Path(__file__).resolve().parents[2] / name
    if bundled.is_dir():
        return str(bundled)
    from model.weight_files import CheckpointError

    raise CheckpointError(
        f"the bundled checkpoint is neither in {Path(name).absolute()} nor beside the program: give the folder of a "
        "checkpoint with --checkpoint or FINELAP_CHECKPOINT"
    )


class NotFinite(Exception):
    """The model returned NaN or infinite values."""


class Engine:
    """Embeds audio and texts for concurrent callers. Call `start` before use and `close` after."""

    def __init__(
        self, model: Model, *, max_batch_windows: int = 16, max_queue_windows: int = 512, max_wait: float = 0.005
    ) -> None:
        """`max_wait` in seconds, see Batcher. The queue limit applies to each lane.

        At most `max_batch_windows` run at once: in one batch, or in several concurrent ones if FineLAP.side_by_side
        says so. Texts then have a thread of their own; otherwise both lanes take turns on one.
        """
        from model.cpu.threads import as_here

        side_by_side, prepare = model.side_by_side(max_batch_windows), as_here()
        self._model = model
        self.windows = model.config.windows
        self._max_batch_windows = max_batch_windows
        self._in_flight = 2 * max_batch_windows  # of one recording, so that the next batch is ready when one ends
        self._device = Device("audio", side_by_side, prepare)
        self._text_device = self._device if side_by_side == 1 else Device("text", prepare=prepare)
        self._text_cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._tokens: dict[str, bool] = {}  # word → whether it is a single token
        self._checked_at = -_CHECK_TTL
        self._checking = asyncio.Lock()
        self.on_batch: Callable[[str, BatchReport], None] = lambda lane, report: None
        self.on_call: Callable[[str, CallReport], None] = lambda lane, report: None
        self.audio_lane: Batcher[np.ndarray, WindowEmbedding] = Batcher(
            self._encode_windows,
            device=self._device,
            cost=self._cost,
            limits=BatchLimits(
                math.ceil(max_batch_windows / side_by_side), max_queue_windows, max_wait, _BATCH_SECONDS * side_by_side
            ),
            observers=self._observers("audio"),
            name="audio",
        )
        self.text_lane: Batcher[str, np.ndarray] = Batcher(
            self._encode_texts,
            device=self._text_device,
            limits=BatchLimits(_TEXT_BATCH, max_queue_windows, max_wait, _BATCH_SECONDS),
            observers=self._observers("text"),
            name="text",
        )
        self.name, self.stamp = model.name, model.stamp
        self.dim, self.frame_hop = model.dim, model.frame_hop
        self.traits, self.sample_rate = model.traits, model.config.windows.sample_rate
        self.matching = model.config.matching
        self._pair = (_number(model.temp_global), _number(model.b_global))  # of a clip and a text
        self._frame_pair = self._pair
        if hasattr(model, "temp_local") and hasattr(model, "b_local"):
            self._frame_pair = (_number(model.temp_local), _number(model.b_local))
        self.device, self.dtype = str(model.device), str(model.dtype).removeprefix("torch.")

    async def start(self) -> None:
        """Warms the model up, then starts the lanes. Raises what the model raises."""
        await self._device.call(self._warm_up)
        self.audio_lane.start()
        self.text_lane.start()

    async def close(self, grace: float = 10.0) -> None:
        """Rejects new work, lets current work finish for `grace` seconds, then fails the rest with Closed."""
        await asyncio.gather(self.audio_lane.close(grace), self.text_lane.close(grace))
        self._device.close()
        self._text_device.close()

    def encode_stream(
        self, windows: AsyncGenerator[np.ndarray, None], *, urgency: Urgency = Urgency.INTERACTIVE
    ) -> AsyncGenerator[WindowEmbedding, None]:
        """One recording's windows (n,) float32 → for each, in order, its clip (D,) and frames (T, D).

        The number of windows in flight is bounded. Close the generator to cancel those still queued. Raises QueueFull,
        Closed, NotFinite, and what `windows` raises.
        """
        return self.audio_lane.stream(windows, self._in_flight, urgency)

    async def encode_live(self, window: np.ndarray) -> WindowEmbedding:
        """A window (n,) float32 of a live stream → clip (D,) and frames (T, D). Waits while the queue is full.

        Raises Closed, NotFinite.
        """
        return await self.audio_lane.submit_further(window, urgency=Urgency.LIVE)

    async def embed_texts(self, texts: Sequence[str], *, urgency: Urgency = Urgency.INTERACTIVE) -> np.ndarray:
        """Texts → (B, D) float32. Recent texts are cached. Raises QueueFull, Closed, NotFinite."""
        found = {text: self._text_cache[text] for text in texts if text in self._text_cache}
        unknown = [text for text in dict.fromkeys(texts) if text not in found]
        vectors = await self.text_lane.map(unknown, 2 * _TEXT_BATCH, urgency)
        found.update(zip(unknown, vectors, strict=True))
        for text in found:
            self._text_cache[text] = found[text]
            self._text_cache.move_to_end(text)
        while len(self._text_cache) > _TEXT_CACHE:
            self._text_cache.popitem(last=False)
        return np.stack([found[text] for text in texts]) if texts else np.empty((0, self.dim), np.float32)

    async def count_tokens(self, texts: Sequence[str]) -> int:
        """The total number of tokens of the texts; of words, if the model has no tokenizer."""
        tokenise = getattr(self._model, "tokenise", None)
        if tokenise is None:
            return sum(len(text.split()) for text in texts)
        # on the device's thread, because the tokenizer is not thread-safe
        _, mask = await self._device.call(tokenise, texts)
        return int(mask.sum())

    def clip_score(self, clips: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Clips (A, D), texts (B, D) → scores (A, B)."""
        return np.asarray(self._model.clip_score(clips, texts), dtype=np.float32)

    def frame_score(self, frames: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Frames (T, D), texts (B, D) → scores (B, T). Use a thread for long recordings."""
        return np.asarray(self._model.frame_score(frames, texts), dtype=np.float32)

    @property
    def text_scores(self) -> HeadScores:
        """How the cosines of texts to the vectors of clips, segments and frames become logits."""
        clip = Scores(*self._pair)
        segment = clip if self.matching is None else Scores(*self.matching.segment)
        frame = Scores(*self._frame_pair)
        return HeadScores(clip, segment, frame)

    def clip_logits(self, clip: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Clip (D,), texts (B, D) → logits of the scores (B,): similarity / temp + bias."""
        temp, bias = self._pair
        return np.asarray((texts @ clip).astype(np.float64) / temp + bias)

    def match_logits(
        self, clip: np.ndarray, segment: np.ndarray, *, sound: bool = False, scores: HeadScores | None = None
    ) -> np.ndarray:
        """Cosines (A,) of clips and of their best segments to a query, NaN where unknown → logits of their scores (A,).

        The larger logit of the two counts: a clip is as good as its best moment. Each cosine has its own pair of
        temperature and bias (model.config.MatchingConfig), and a query that is a sound has one for both; without them,
        the model's pair for a clip and a text stands in. A concept has its own `scores`.
        """
        both = zip((clip, segment), self._pairs(sound, scores), strict=True)
        logits = [np.asarray(cosines, np.float64) / temp + bias for cosines, (temp, bias) in both]
        return np.asarray(np.fmax(*logits))

    def least_cosines(
        self, logit: float, *, sound: bool = False, scores: HeadScores | None = None
    ) -> tuple[float, float]:
        """The cosines of a clip and of its best segment from which on `match_logits` reaches this logit."""
        (whole_temp, whole_bias), (part_temp, part_bias) = self._pairs(sound, scores)
        return (logit - whole_bias) * whole_temp, (logit - part_bias) * part_temp

    def _pairs(self, sound: bool, scores: HeadScores | None) -> tuple[tuple[float, float], tuple[float, float]]:
        """Temperature and bias of a clip's cosine and of a segment's; those of a concept are its own."""
        if scores is not None:
            return (scores.clip.temp, scores.clip.bias), (scores.segment.temp, scores.segment.bias)
        if self.matching is None:
            return self._pair, self._pair
        return (self.matching.sound, self.matching.sound) if sound else (self._pair, self.matching.segment)

    async def single_tokens(self, words: Sequence[str]) -> set[str]:
        """Those of the words (lower case) that are single tokens of the model; none if it has no tokenizer."""
        tokenise = getattr(self._model, "tokenise", None)
        unseen = [word for word in dict.fromkeys(words) if word not in self._tokens]
        if tokenise is not None and unseen:
            # the first two show which tokens every text has, and the token of unknown characters, if there is one
            texts = ["", _NO_WORD, *(f" {word}" for word in unseen)]
            ids, mask = await self._text_device.call(tokenise, texts)
            rows = [
                row[kept.astype(bool)].tolist() for row, kept in zip(np.asarray(ids), np.asarray(mask), strict=True)
            ]
            frame = len(rows[0])
            unknown = set(rows[1]) - set(rows[0]) if len(rows[1]) == frame + 1 else set()
            if len(self._tokens) + len(unseen) > _TOKEN_CACHE:
                self._tokens.clear()
            for word, row in zip(unseen, rows[2:], strict=True):
                self._tokens[word] = len(row) == frame + 1 and unknown.isdisjoint(row)
        return {word for word in words if self._tokens.get(word, False)}

    @property
    def busy(self) -> bool:
        """Whether the model computes or has something to compute. May be read from any thread."""
        return self.text_lane.busy or self.audio_lane.busy

    @property
    def audio_waits(self) -> bool:
        """Whether windows wait for the model."""
        return self.audio_lane.depth > 0

    def backlog_seconds(self) -> float:
        """Seconds of sound that wait for the model; a window that is padded counts as padded."""
        return self.audio_lane.waiting_cost * self.windows.frames * self.windows.frame_hop

    def refuse_if_full(self) -> None:
        """Raises QueueFull or Closed if new audio would be rejected; for checks before decoding."""
        self.audio_lane.refuse_if_full()

    async def check(self) -> None:
        """Runs a forward pass through both lanes and raises its error. A passed check is valid for a second.

        The probe goes to the front of the queue, so that a busy service is still ready.
        """
        async with self._checking:
            if time.monotonic() - self._checked_at < _CHECK_TTL:
                return
            noise = np.random.default_rng(0).standard_normal(_PROBE_SAMPLES).astype(np.float32) * 0.1
            await asyncio.gather(
                self.audio_lane.submit(noise, probe=True), self.text_lane.submit("a sound", probe=True)
            )
            self._checked_at = time.monotonic()

    def gpu_memory(self, kind: str) -> int:
        """Bytes of GPU memory `allocated` or `reserved` by this process."""
        import torch

        return int(torch.cuda.memory_allocated() if kind == "allocated" else torch.cuda.memory_reserved())

    def _observers(self, lane: str) -> BatchObservers:
        # looked up at each call, because the state sets on_batch and on_call later
        return BatchObservers(lambda report: self.on_batch(lane, report), lambda report: self.on_call(lane, report))

    def _encode_windows(self, windows: list[np.ndarray]) -> list[WindowEmbedding]:
        with _memory_errors():
            encoded = [(np.asarray(clip), np.asarray(frames)) for clip, frames in self._model.encode_windows(windows)]
        for clip, frames in encoded:
            if not (np.isfinite(clip).all() and np.isfinite(frames).all()):
                raise NotFinite("the model returned values that are not finite for this audio")
        return encoded

    def _encode_texts(self, texts: list[str]) -> list[np.ndarray]:
        with _memory_errors():
            vectors = np.asarray(self._model.encode_text(texts), dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise NotFinite("the model returned values that are not finite for this text")
        return [vector.copy() for vector in vectors]  # a view would keep the whole batch in memory

    def _cost(self, samples: np.ndarray) -> float:
        """The cost of a window relative to a full one: the work is proportional to the padded length."""
        windows = self.windows
        needed = frame_count(len(samples), windows)
        return (
            min((b for b in windows.buckets if needed <= b < windows.frames), default=windows.frames) / windows.frames
        )

    def _warm_up(self) -> None:
        """Runs every padded length once, and on a GPU, whose kernels depend on the batch size, also in a full batch."""
        whole = window_samples(self.windows)
        sizes = (1, self._max_batch_windows) if self.device.startswith("cuda") else (1,)
        for frames in (*self.windows.buckets, self.windows.frames):
            samples = min(whole, int(frames * self.windows.frame_hop * self.sample_rate) - 1)
            for size in sizes:
                self._encode_windows([np.zeros(samples, dtype=np.float32)] * size)
        self._encode_texts(["a sound"])


def _number(value: Any) -> float:
    """A scalar of the model, which may be a tensor with a gradient."""
    return float(value.detach() if hasattr(value, "detach") else value)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turns PyTorch's out-of-memory errors into MemoryError; on a GPU, also frees its cache."""
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_initialized():
            cuda.empty_cache()
        raise MemoryError("There is not enough memory to run the model on this input.") from error


def _is_out_of_memory(error: Exception) -> bool:
    message = str(error).lower()  # PyTorch has an exception class only for GPUs
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in message or "can't allocate memory" in message)
    )
