"""Excerpts of stored clips: what is cut, how its file is named, previews, and several of them as one archive."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from app import errors
from app.audio import ucs
from app.audio.errors import MediaError
from app.audio.peaks import Loudness
from app.decoding.pool import ExcerptStream
from app.errors import Invalid
from app.export.formats import to_cell
from app.state import AppState
from index import Clip, Library

MAX_PAD = 60.0  # seconds
_FLAC_CHANNELS = 8
_OGG_RATES = (8_000, 192_000)  # Hz
_FLAC_RATE = 655_350  # Hz
_READ_SIZE = 1 << 19  # bytes
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]+')  # in file names of Windows
_MAX_STEM = 180  # characters
_NONE = "NONE"  # UCS's placeholder for an empty block
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # so that the same request gives the same bytes

Range = tuple[int | None, int | None]


@dataclass(frozen=True)
class Cut:
    """What a caller wants of a clip: seconds `start` to `end`, widened by `pad` on both sides.

    fade: seconds at each edge that cuts into the sound.
    """

    start: float | None = None
    end: float | None = None
    pad: float = 0.0
    format: Literal["wav", "flac", "ogg"] = "wav"
    normalize: bool = False
    fade: float = 0.005


@dataclass(frozen=True)
class Excerpt:
    """An excerpt that is being written. start, end: seconds of the clip."""

    filename: str
    start: float
    end: float
    stream: ExcerptStream


def frames_of(clip: Clip, cut: Cut) -> tuple[int, int, int]:
    """(first frame, end, frames of the clip). Raises Invalid for an empty stretch or one outside of the clip."""
    total = max(1, round(clip.duration * clip.sample_rate))
    start, end = cut.start or 0.0, clip.duration if cut.end is None else cut.end
    if start >= clip.duration:
        raise Invalid(f"start: {start:g} s is after the end of the clip, which has {clip.duration:.3f} s.")
    if end <= start:
        raise Invalid(f"end: {end:g} s is not after the start, {start:g} s.")
    first = max(0, round((start - cut.pad) * clip.sample_rate))
    stop = min(total, round(min(end + cut.pad, clip.duration) * clip.sample_rate))
    if first >= stop:
        raise Invalid("The stretch is shorter than one sample.")
    return first, stop, total


def file_name(clip: Clip, extension: str, stretch: tuple[float, float] | None = None) -> str:
    """The name of a clip's or excerpt's file: after UCS if the clip has a CatID, else its own name.

    A stretch of a clip (seconds) is told in the name's user data. `extension` without a dot.
    """
    part = "" if stretch is None else f"{_clock(stretch[0])}-{_clock(stretch[1])}"
    named = ucs.parse(clip.filename)
    if named is not None:
        stem = Path(clip.filename).stem
        return _safe(f"{stem}{'-' if named.user_data else '_'}{part}" if part else stem, extension)
    meta = clip.metadata
    if str(meta.get("cat_id", "")) not in ucs.categories():
        stem = Path(clip.filename).stem
        return _safe(f"{stem}_{part}" if part else stem, extension)
    category, user = str(meta["cat_id"]), _block(meta.get("user_category"))
    fx_name = _block(meta.get("fx_name")) or _block(meta.get("title")) or _block(Path(clip.filename).stem)
    vendor = _block(meta.get("vendor_category"))
    if vendor and not fx_name.startswith(f"{vendor}-"):
        fx_name = f"{vendor}-{fx_name}"
    blocks = [f"{category}-{user}" if user else category, fx_name or _NONE]
    blocks += [_block(meta.get(key)) or _NONE for key in ("creator", "source")]
    rest = "-".join(text for text in (_block(meta.get("user_data")), part) if text)
    return _safe("_".join([*blocks, rest] if rest else blocks), extension)


def _block(value: object) -> str:
    """A value as a block of a UCS name, whose separator is the underscore."""
    text = value if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    return " ".join(_FORBIDDEN.sub(" ", str(text)[:200]).replace("_", " ").split())


def _clock(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def _safe(stem: str, extension: str) -> str:
    clean = _FORBIDDEN.sub(" ", stem)[:_MAX_STEM].strip(" .") or "unnamed"
    return f"{clean}.{extension}" if extension else clean


@contextlib.asynccontextmanager
async def open_excerpt(
    state: AppState, clip_id: str, cut: Cut, wanted: Range | None = None
) -> AsyncGenerator[Excerpt, None]:
    """Cuts a clip; `wanted` are bytes of the WAV file. Raises ClipNotFound, AudioMissing, Invalid, MediaError."""
    clip, path = await state.read(_find, state.library, clip_id)
    _check_format(clip, cut.format)
    first, stop, total = frames_of(clip, cut)
    options = {
        "start": first, "stop": stop, "total": total, "format": cut.format, "fade": cut.fade,
        "normalize": cut.normalize, "range": wanted,
    }  # fmt: skip
    start, end = first / clip.sample_rate, stop / clip.sample_rate
    name = file_name(clip, cut.format, None if (first, stop) == (0, total) else (start, end))
    async with _written(state, clip, path, options) as stream:
        yield Excerpt(name, start, end, stream)


@contextlib.asynccontextmanager
async def open_preview(state: AppState, clip_id: str, wanted: Range | None = None) -> AsyncGenerator[Excerpt, None]:
    """A clip as 16-bit WAV of one or two channels at 8 to 48 kHz. Raises ClipNotFound, AudioMissing, MediaError."""
    clip, path = await state.read(_find, state.library, clip_id)
    _, total, _ = frames_of(clip, Cut())
    options = {"start": 0, "stop": total, "total": total, "preview": True, "range": wanted}
    async with _written(state, clip, path, options) as stream:
        yield Excerpt(_safe(Path(clip.filename).stem, "wav"), 0.0, clip.duration, stream)


async def clip_loudness(state: AppState, clip_id: str) -> Loudness:
    """Measures a clip at its own rate with all channels. Raises ClipNotFound, AudioMissing, MediaError."""
    clip, path = await state.read(_find, state.library, clip_id)
    _, total, _ = frames_of(clip, Cut())
    async with _written(state, clip, path, {"start": 0, "stop": total, "total": total, "format": "loudness"}) as stream:
        return Loudness(**json.loads(b"".join([piece async for piece in stream])))


@contextlib.asynccontextmanager
async def _written(
    state: AppState, clip: Clip, path: Path, options: dict[str, Any]
) -> AsyncGenerator[ExcerptStream, None]:
    try:
        async with state.decoders.open_excerpt(
            path, clip.filename, options, max(clip.duration, state.settings.max_duration_s)
        ) as stream:
            yield stream
    except MediaError as error:
        state.metrics.decode_failures.labels(error.reason).inc()
        raise


def _find(library: Library, clip_id: str) -> tuple[Clip, Path]:
    return library.get(clip_id), library.audio_path(clip_id)


def _check_format(clip: Clip, format: str) -> None:
    rate, channels = clip.sample_rate, clip.channels
    if format == "flac" and (channels > _FLAC_CHANNELS or rate > _FLAC_RATE):
        raise Invalid(f"format: FLAC cannot hold {channels} channels at {rate} Hz; use wav.")
    if format == "ogg" and (channels > 255 or not _OGG_RATES[0] <= rate <= _OGG_RATES[1]):
        raise Invalid(f"format: Ogg Vorbis cannot hold {channels} channels at {rate} Hz; use wav.")


# Archives

COLUMNS = (
    "file", "clip_id", "filename", "start", "end", "duration", "sample_rate", "channels", "cat_id", "category",
    "subcategory", "description", "tags", "problem",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A clip of an archive, whole as it was uploaded if `cut` is None."""

    clip_id: str
    cut: Cut | None = None


async def write_archive(state: AppState, items: Sequence[Item]) -> AsyncGenerator[bytes, None]:
    """A ZIP archive, piece by piece: the items' files, then sounds.csv with a row for each item.

    Audio is stored without compression. An item that fails is left out, and its row tells why; one that fails midway
    has an incomplete file.
    """
    sink = _Sink()
    table = io.StringIO()
    rows = csv.DictWriter(table, COLUMNS, lineterminator="\n", restval="")
    rows.writeheader()
    used: set[str] = {"sounds.csv"}
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for item in items:
            row: dict[str, Any] = {"clip_id": to_cell(item.clip_id)}
            try:
                async with contextlib.AsyncExitStack() as stack:
                    name, pieces = await _open_item(state, item, row, stack)
                    row["file"] = _unique(name, used)
                    with archive.open(zipfile.ZipInfo(row["file"], _ZIP_DATE), "w", force_zip64=True) as entry:
                        async for piece in pieces:
                            entry.write(piece)
                            yield sink.take()
            except Exception as error:
                row["problem"] = to_cell(str(errors.describe(error)["detail"]))
            rows.writerow(row)
            yield sink.take()
        archive.writestr(zipfile.ZipInfo("sounds.csv", _ZIP_DATE), "\ufeff" + table.getvalue())
    yield sink.take()


async def _open_item(
    state: AppState, item: Item, row: dict[str, Any], stack: contextlib.AsyncExitStack
) -> tuple[str, AsyncIterator[bytes]]:
    """The file name and bytes of an item; completes its row."""
    clip = await state.read(state.library.get, item.clip_id)
    meta = clip.metadata
    named = ("cat_id", "category", "subcategory", "description")
    row |= {name: to_cell(str(meta[name])) for name in named if name in meta}
    tags = meta.get("tags", [])
    row |= {
        "filename": to_cell(clip.filename), "sample_rate": clip.sample_rate, "channels": clip.channels,
        "tags": to_cell("; ".join(map(str, tags)) if isinstance(tags, list) else str(tags)),
    }  # fmt: skip
    if item.cut is None:
        path = await state.read(state.library.audio_path, item.clip_id)
        row |= {"start": "0.000", "end": f"{clip.duration:.3f}", "duration": f"{clip.duration:.3f}"}
        return file_name(clip, Path(clip.filename).suffix[1:]), _read_file(state, path)
    excerpt = await stack.enter_async_context(open_excerpt(state, item.clip_id, item.cut))
    times = {"start": excerpt.start, "end": excerpt.end, "duration": excerpt.end - excerpt.start}
    row |= {name: f"{seconds:.3f}" for name, seconds in times.items()}
    return excerpt.filename, aiter(excerpt.stream)


async def _read_file(state: AppState, path: Path) -> AsyncGenerator[bytes, None]:
    with await state.read(_open, path) as file:
        while piece := await state.read(file.read, _READ_SIZE):
            yield piece


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _unique(name: str, used: set[str]) -> str:
    """The name with a number before its extension if it is taken already, whatever its case."""
    path, number, unique = Path(name), 1, name
    while unique.casefold() in used:
        number += 1
        unique = f"{path.stem} ({number}){path.suffix}"
    used.add(unique.casefold())
    return unique


class _Sink(io.RawIOBase):
    """Collects what a ZIP file consists of, until it is taken. It cannot seek, so sizes follow their files."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken
