"""The model behind its two lanes: audio windows and texts, batched over all callers.

Knows nothing of files, requests or the library. Audio is mono float32 at 16 kHz; embeddings have unit length.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from app.inference.batcher import Batcher, BatchReport, CallReport, Device, Urgency
from app.settings import Settings
from model.config import SAMPLE_RATE, FineLAPConfig
from model.windows import frame_count, window_samples

if TYPE_CHECKING:
    from model import FineLAP

_TEXT_BATCH = 64  # texts
_TEXT_CACHE = 4096  # embeddings
_READY_FOR = 1.0  # seconds that a passed check counts
_PROBE_SAMPLES = 8_000  # half a second
_BATCH_SECONDS = 0.25  # that a batch may take: how long a search waits at most for the audio before it

WindowEmbedding = tuple[np.ndarray, np.ndarray]  # clip (D,), frames (T, D)


class Model(Protocol):
    """What the engine needs of FineLAP."""

    @property
    def config(self) -> FineLAPConfig: ...
    @property
    def name(self) -> str: ...
    @property
    def stamp(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def frame_hop(self) -> float: ...
    @property
    def temp_global(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    def side_by_side(self, windows: int) -> int: ...
    def encode_windows(self, waveforms: Sequence[np.ndarray]) -> Sequence[tuple[Any, Any]]: ...
    def encode_text(self, texts: Sequence[str]) -> Any: ...
    def clip_score(self, clip: Any, text: Any) -> Any: ...
    def frame_score(self, frames: Any, text: Any) -> Any: ...


def load_model(settings: Settings) -> FineLAP:
    """The settings' checkpoint on their device. Raises CheckpointError.

    The device `auto` is a GPU where there is one. The dtype `auto` is bfloat16 on a GPU; elsewhere float32, or bfloat16
    where model.bfloat16 finds that it is faster and gives the same embeddings.
    """
    import torch

    from model import FineLAP
    from model.bfloat16 import use_bfloat16

    device, dtype = settings.device, settings.dtype
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype != "auto":
        return FineLAP.from_pretrained(settings.checkpoint, device=device, dtype=getattr(torch, dtype))
    if device.startswith("cuda"):
        return FineLAP.from_pretrained(settings.checkpoint, device=device, dtype=torch.bfloat16)
    return use_bfloat16(FineLAP.from_pretrained(settings.checkpoint, device=device))


class NotFinite(Exception):
    """The model gave NaN or infinite numbers."""


class Engine:
    """Embeds audio and texts for many callers at once. `start` it before use, `close` it after."""

    def __init__(
        self, model: Model, *, max_batch_windows: int = 16, max_queue_windows: int = 512, max_wait: float = 0.005
    ) -> None:
        """`max_wait` in seconds; see Batcher. The text lane's queue has as many places as the audio lane's.

        `max_batch_windows` are under way at once: in one batch, or in several where FineLAP.side_by_side says so. Texts
        then have a thread of their own too; else both lanes take turns on one.
        """
        from model.threads import as_here

        side_by_side, prepare = model.side_by_side(max_batch_windows), as_here()
        self._model = model
        self.windows = model.config.windows
        self._max_batch_windows = max_batch_windows
        self._in_flight = 2 * max_batch_windows  # of one recording: the next batch is there when one ends
        self._device = Device("audio", side_by_side, prepare)
        self._text_device = self._device if side_by_side == 1 else Device("text", prepare=prepare)
        self._texts_known: OrderedDict[str, np.ndarray] = OrderedDict()
        self._checked_at = -_READY_FOR
        self._checking = asyncio.Lock()
        self.on_batch: Callable[[str, BatchReport], None] = lambda lane, report: None
        self.on_call: Callable[[str, CallReport], None] = lambda lane, report: None
        self.audio_lane: Batcher[np.ndarray, WindowEmbedding] = Batcher(
            self._encode_windows,
            device=self._device,
            cost=self._cost,
            max_cost=math.ceil(max_batch_windows / side_by_side),
            max_seconds=_BATCH_SECONDS * side_by_side,
            max_queue=max_queue_windows,
            max_wait=max_wait,
            observe=lambda report: self.on_batch("audio", report),
            observe_call=lambda report: self.on_call("audio", report),
            name="audio",
        )
        self.text_lane: Batcher[str, np.ndarray] = Batcher(
            self._encode_texts,
            device=self._text_device,
            max_cost=_TEXT_BATCH,
            max_seconds=_BATCH_SECONDS,
            max_queue=max_queue_windows,
            max_wait=max_wait,
            observe=lambda report: self.on_batch("text", report),
            observe_call=lambda report: self.on_call("text", report),
            name="text",
        )
        self.name, self.stamp = model.name, model.stamp
        self.dim, self.frame_hop = model.dim, model.frame_hop
        self.device, self.dtype = str(model.device), str(model.dtype).removeprefix("torch.")

    async def start(self) -> None:
        """Warms up every shape of input, then opens the lanes. What the model raises here is not caught."""
        await self._device.call(self._warm_up)
        self.audio_lane.start()
        self.text_lane.start()

    async def close(self, grace: float = 10.0) -> None:
        """Refuses new work, lets present work finish for `grace` seconds, and answers the rest with Closed."""
        await asyncio.gather(self.audio_lane.close(grace), self.text_lane.close(grace))
        self._device.close()
        self._text_device.close()

    def encode_stream(
        self, windows: AsyncGenerator[np.ndarray, None], *, urgency: Urgency = Urgency.INTERACTIVE
    ) -> AsyncGenerator[WindowEmbedding, None]:
        """One recording's windows (n,) float32 → for each, in order, its clip (D,) and frames (T, D).

        Only so many windows are in flight that memory stays bounded. Close the generator to cancel those still queued.
        Raises QueueFull, Closed, NotFinite, and what `windows` raises.
        """
        return self.audio_lane.stream(windows, self._in_flight, urgency)

    async def embed_texts(self, texts: Sequence[str], *, urgency: Urgency = Urgency.INTERACTIVE) -> np.ndarray:
        """Texts → (B, D) float32. Texts met before cost nothing. Raises QueueFull, Closed, NotFinite."""
        found = {text: self._texts_known[text] for text in texts if text in self._texts_known}
        unknown = [text for text in dict.fromkeys(texts) if text not in found]
        vectors = await self.text_lane.map(unknown, 2 * _TEXT_BATCH, urgency)
        found.update(zip(unknown, vectors, strict=True))
        for text in found:
            self._texts_known[text] = found[text]
            self._texts_known.move_to_end(text)
        while len(self._texts_known) > _TEXT_CACHE:
            self._texts_known.popitem(last=False)
        return np.stack([found[text] for text in texts]) if texts else np.empty((0, self.dim), np.float32)

    async def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the model reads of these texts, in all; words, if it came without a tokenizer."""
        tokenise = getattr(self._model, "tokenise", None)
        if tokenise is None:
            return sum(len(text.split()) for text in texts)
        # on the device's thread: a tokenizer is not for two threads at once
        _, mask = await self._device.call(tokenise, texts)
        return int(mask.sum())

    def clip_score(self, clips: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Clips (A, D), texts (B, D) → scores (A, B)."""
        return np.asarray(self._model.clip_score(clips, texts), dtype=np.float32)

    def frame_score(self, frames: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Frames (T, D), texts (B, D) → scores (B, T). Worth a thread for long recordings."""
        return np.asarray(self._model.frame_score(frames, texts), dtype=np.float32)

    def label_probabilities(self, clip: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Clip (D,), texts (B, D) → which of the texts it is (B,): a softmax over similarity / temp."""
        logits = (texts @ clip).astype(np.float64) / float(self._model.temp_global)
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum())

    def score_of(self, similarity: np.ndarray) -> np.ndarray:
        """Similarities (A,) of clips to a query → their scores (A,)."""
        # the product of one-dimensional vectors is the similarity itself
        column = np.asarray(similarity, dtype=np.float32)[:, None]
        return self.clip_score(column, np.ones((1, 1), dtype=np.float32))[:, 0]

    def refuse_if_full(self) -> None:
        """Raises QueueFull or Closed if audio that came now would be refused: before it is read and decoded."""
        self.audio_lane.refuse_if_full()

    async def check(self) -> None:
        """A real forward pass through both lanes; raises what went wrong. A passed check counts for a second.

        The probe goes to the front of the queue, so a busy service is still a ready one.
        """
        async with self._checking:
            if time.monotonic() - self._checked_at < _READY_FOR:
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

    def _encode_windows(self, windows: list[np.ndarray]) -> list[WindowEmbedding]:
        with _memory_errors():
            encoded = [(np.asarray(clip), np.asarray(frames)) for clip, frames in self._model.encode_windows(windows)]
        for clip, frames in encoded:
            if not (np.isfinite(clip).all() and np.isfinite(frames).all()):
                raise NotFinite("the model gave numbers that are not finite for this audio")
        return encoded

    def _encode_texts(self, texts: list[str]) -> list[np.ndarray]:
        with _memory_errors():
            vectors = np.asarray(self._model.encode_text(texts), dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise NotFinite("the model gave numbers that are not finite for this text")
        return [vector.copy() for vector in vectors]  # a copy does not keep the whole batch alive in the cache

    def _cost(self, samples: np.ndarray) -> float:
        """What a window costs beside a whole one: the network's work goes with the padded length."""
        windows = self.windows
        needed = frame_count(len(samples), windows)
        return (
            min((b for b in windows.buckets if needed <= b < windows.frames), default=windows.frames) / windows.frames
        )

    def _warm_up(self) -> None:
        """Every padded length once, alone and, where kernels are chosen by the size of the batch, in a full one."""
        whole = window_samples(self.windows)
        sizes = (1, self._max_batch_windows) if self.device.startswith("cuda") else (1,)
        for frames in (*self.windows.buckets, self.windows.frames):
            samples = min(whole, int(frames * self.windows.frame_hop * SAMPLE_RATE) - 1)
            for size in sizes:
                self._encode_windows([np.zeros(samples, dtype=np.float32)] * size)
        self._encode_texts(["a sound"])


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """What PyTorch says when memory runs out, as MemoryError; on a GPU what it had set aside is given back."""
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_initialized():
            cuda.empty_cache()
        raise MemoryError("The model needs more memory for this than there is now.") from error


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error).lower()  # PyTorch has a class of its own for GPUs only
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    )
