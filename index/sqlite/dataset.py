"""A whole library as a folder of Parquet files, which Hugging Face `datasets` reads, and back.

    <folder>/README.md                    the dataset card: where the files are
             data/train-00000.parquet …   a row for each clip, oldest first
             finelap.json                 what made the vectors; written last

A clip's row has its record, its metadata, its embedding, its frames as the library stores them (int8, with a scale per
frame) and, on request, its audio file. An import inserts them into an empty library as they were, ids included, so that
nothing is embedded again and every search gives the same answer.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.files import fsync_file, fsync_folder, write_file
from index.new_clip import EncodedClip, check_vector, encode_clip
from index.quantization import FrameCodes
from index.records import Clip, LibraryError, NewClip, check_text, dump_metadata
from index.segments import cut_segments
from index.sqlite import queries
from index.sqlite.audio_files import AudioFiles
from index.sqlite.backup import Progress, check_restorable
from index.sqlite.reader import LibraryReader, exclusive_lock
from index.sqlite.store import AUDIO_FOLDER, DATABASE_FILE, RESTORING_FILE, Store, storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

_MANIFEST, _CARD, _DATA = "finelap.json", "README.md", "data"
_FORMAT = 1
_GROUP_BYTES = 16 << 20  # of frames and audio in a row group, which is held in memory
_SHARD_BYTES = 500 << 20  # of frames and audio in a file
_ID = re.compile(r"[0-9A-Za-z_-]{1,32}")
_HASH = re.compile(r"[0-9a-f]{64}")
_CARD_TEXT = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

# A library of sounds

{clips} clips with embeddings by the FineLAP checkpoint `{checkpoint}`, as written by `finelap export`;
`finelap import` makes a library of this folder.

- `embedding`: the clip, {dim} values of unit length; `frames`: int8, one row every `frame_hop` seconds. Frame t is
  `frames[t] * frame_scales[t]`.
- `metadata`: a JSON object.
"""


@dataclass(frozen=True)
class DatasetReport:
    """What was exported or imported."""

    clips: int
    audio: int  # clips with their audio file
    checkpoint: str


def export_library(folder: Path, dest: Path, progress: Progress, audio: bool = False) -> DatasetReport:
    """Writes the library in `folder`, which may be in use, to the folder `dest`, which must be empty or not exist.

    Raises LibraryError if there is no library, or an empty one, or `dest` has files; StorageFull.
    """
    if dest.exists() and any(dest.iterdir()):
        raise LibraryError(f"{dest} is not empty: export to another folder")
    with LibraryReader(folder) as library, library.view() as view:
        made = queries.stamp(view)
        total = queries.count(view)
        if made is None or not total:
            raise LibraryError(f"the library in {folder} is empty")
        with storage_errors(dest):
            (dest / _DATA).mkdir(parents=True, exist_ok=True)
            with_audio = _write_shards(library, view, dest / _DATA, made, (total, audio, progress))
            _write_manifest(dest, made, total)
    return DatasetReport(total, with_audio, made[0])


def import_library(source: Path, folder: Path, progress: Progress) -> DatasetReport:
    """Makes a library in `folder`, which must be empty or not exist, of the folder that `export_library` wrote.

    It appears in one step, when it is complete. Clips without audio become clips whose audio is missing: adding the
    same file restores it. Raises LibraryError if `source` is no such folder, is incomplete or damaged, LibraryInUse,
    StorageFull.
    """
    manifest = _read_manifest(source)
    shards = sorted((source / _DATA).glob("train-*.parquet"))
    with storage_errors(folder):
        check_restorable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / "lock", f"{folder} is in use"):
            check_restorable(folder)
            for suffix in ("", "-wal", "-shm"):  # of an import that was interrupted
                (folder / (RESTORING_FILE + suffix)).unlink(missing_ok=True)
            report = _import(shards, folder, manifest, progress)
            fsync_file(folder / RESTORING_FILE)
            os.replace(folder / RESTORING_FILE, folder / DATABASE_FILE)
            fsync_folder(folder)
            fsync_folder(folder.absolute().parent)
    return report


# Export, of a library or of clips that were embedded elsewhere


def write_part(folder: Path, name: str, clips: Sequence[NewClip], checkpoint: str, dim: int) -> Path:
    """Writes clips, without audio, as one file of the export in `folder`. The file appears in one step.

    `name` is unique within the export. Writing a part again replaces it, so whoever makes parts on many machines may
    repeat them. Raises ValueError for clips that `encode_clip` refuses, or without any.
    """
    if not clips:
        raise ValueError("a part needs clips")
    path = folder / _DATA / f"train-{name}.parquet"
    writing = path.with_suffix(f".{os.getpid()}.writing")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_rows(writing, [_row_of(encode_clip(clip, dim, datetime.now(UTC)), dim) for clip in clips], checkpoint, dim)
    os.replace(writing, path)
    return path


def finish_parts(folder: Path, checkpoint: str, dim: int) -> DatasetReport:
    """Completes an export of parts, which `import_library` then takes. Raises LibraryError for a foreign part."""
    from pyarrow import parquet

    total = 0
    for path in sorted((folder / _DATA).glob("train-*.parquet")):
        file = parquet.ParquetFile(path)
        about = json.loads((file.schema_arrow.metadata or {}).get(b"finelap", b"{}"))
        if (about.get("checkpoint"), about.get("dim")) != (checkpoint, dim):
            raise LibraryError(f"{path} is of another checkpoint: remove it")
        total += file.metadata.num_rows
    _write_manifest(folder, (checkpoint, dim), total)
    return DatasetReport(total, 0, checkpoint)


def _row_of(encoded: EncodedClip, dim: int) -> dict[str, Any]:
    codes, scales = FrameCodes.from_bytes(encoded.codes, dim).codes_and_scales()
    clip = encoded.clip
    row = {name: getattr(clip, name) for name in ("id", "filename", "sha256", "created", "duration", "channels")}
    row |= {"sample_rate": clip.sample_rate, "metadata": encoded.metadata, "embedding": encoded.embedding}
    return row | {"frame_hop": encoded.frame_hop, "frames": codes, "frame_scales": scales}


def _write_rows(path: Path, rows: list[dict[str, Any]], checkpoint: str, dim: int) -> None:
    from pyarrow import parquet

    schema = _schema(checkpoint, dim, False)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for group, _ in _groups(iter(rows)):
            writer.write_table(_table(group, schema, dim))
    fsync_file(path)


def _write_manifest(dest: Path, made: tuple[str, int], total: int) -> None:
    """Writes the card and the manifest, after the files that they are about."""
    card = _CARD_TEXT.format(clips=total, checkpoint=made[0], dim=made[1])
    write_file(dest / _CARD, card.encode())
    manifest = {"format": _FORMAT, "checkpoint": made[0], "dim": made[1], "clips": total}
    write_file(dest / _MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
    fsync_folder(dest)


def _write_shards(
    library: LibraryReader,
    view: sqlite3.Connection,
    folder: Path,
    made: tuple[str, int],
    how: tuple[int, bool, Progress],
) -> int:
    """Writes all clips; returns how many have audio."""
    from pyarrow import parquet

    total, audio, progress = how
    schema = _schema(*made, audio)
    writer, number, written, done, with_audio = None, 0, 0, 0, 0
    try:
        for group, size in _groups(_rows(library, view, made[1], audio)):
            if writer is None:
                path = folder / f"train-{number:05}.parquet"
                writer = parquet.ParquetWriter(path, schema, compression="zstd")
            writer.write_table(_table(group, schema, made[1]))
            written += size
            done += len(group)
            with_audio += sum(row.get("audio") is not None for row in group)
            progress("clips", done, total)
            if written >= _SHARD_BYTES:
                writer.close()
                fsync_file(path)
                writer, number, written = None, number + 1, 0
    finally:
        if writer is not None:
            writer.close()
            fsync_file(path)
    fsync_folder(folder)
    return with_audio


def _rows(library: LibraryReader, view: sqlite3.Connection, dim: int, audio: bool) -> Iterator[dict[str, Any]]:
    found = view.execute(
        "SELECT id, filename, sha256, duration, sample_rate, channels, created, metadata, embedding, hop, codes "
        "FROM clips JOIN vectors USING (row) JOIN frames USING (row) ORDER BY row"
    )
    names = [column[0] for column in found.description]
    for columns in found:
        row = dict(zip(names, columns, strict=True))
        row["embedding"] = np.frombuffer(row["embedding"], "<f4")
        row["frame_hop"] = row.pop("hop")
        frames = FrameCodes.from_bytes(row.pop("codes"), dim)
        row["frames"], row["frame_scales"] = frames.codes_and_scales()
        if audio:
            row["audio"] = None
            with suppress(FileNotFoundError):  # a clip whose audio is missing, or was deleted since
                row["audio"] = {"bytes": library.audio_path(row["sha256"]).read_bytes(), "path": row["filename"]}
        yield row


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Rows in groups of about _GROUP_BYTES, with their bytes."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += row["frames"].nbytes + len((row.get("audio") or {}).get("bytes", b""))
        if size >= _GROUP_BYTES:
            yield group, size
            group, size = [], 0
    if group:
        yield group, size


def _schema(checkpoint: str, dim: int, audio: bool) -> pa.Schema:
    import pyarrow as pa

    texts = ("id", "filename", "sha256", "created", "metadata")
    fields = [pa.field(name, pa.string()) for name in texts]
    fields += [
        pa.field("duration", pa.float64()),
        pa.field("sample_rate", pa.int32()),
        pa.field("channels", pa.int32()),
    ]
    fields += [pa.field("embedding", pa.list_(pa.float32(), dim)), pa.field("frame_hop", pa.float64())]
    fields += [
        pa.field("frames", pa.list_(pa.list_(pa.int8(), dim))),
        pa.field("frame_scales", pa.list_(pa.float32())),
    ]
    about = {"finelap": json.dumps({"format": _FORMAT, "checkpoint": checkpoint, "dim": dim})}
    if audio:
        fields.append(pa.field("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
        about["huggingface"] = json.dumps({"info": {"features": _features(dim)}})
    return pa.schema(fields, metadata=about)


def _features(dim: int) -> dict[str, Any]:
    """The columns as `datasets` describes them, which tells it to decode the audio."""

    def value(dtype: str) -> dict[str, Any]:
        return {"dtype": dtype, "_type": "Value"}

    features = {name: value("string") for name in ("id", "filename", "sha256", "created", "metadata")}
    features |= {"duration": value("float64"), "sample_rate": value("int32"), "channels": value("int32")}
    features["embedding"] = {"feature": value("float32"), "length": dim, "_type": "Sequence"}
    features["frame_hop"] = value("float64")
    inner = {"feature": value("int8"), "length": dim, "_type": "Sequence"}
    features["frames"] = {"feature": inner, "_type": "Sequence"}
    features["frame_scales"] = {"feature": value("float32"), "_type": "Sequence"}
    features["audio"] = {"_type": "Audio"}
    return features


def _table(group: list[dict[str, Any]], schema: pa.Schema, dim: int) -> pa.Table:
    import pyarrow as pa

    def lists(parts: list[Any], values: pa.Array) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    frames, scales = [row["frames"] for row in group], [row["frame_scales"] for row in group]
    codes = pa.array(np.concatenate(frames).ravel())
    vectors = pa.array(np.concatenate([row["embedding"] for row in group]))
    special = {
        "embedding": pa.FixedSizeListArray.from_arrays(vectors, dim),
        "frames": lists(frames, pa.FixedSizeListArray.from_arrays(codes, dim)),
        "frame_scales": lists(scales, pa.array(np.concatenate(scales).astype(np.float32))),
    }
    arrays = [
        special[field.name] if field.name in special else pa.array([row[field.name] for row in group], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


# Import


def _read_manifest(source: Path) -> dict[str, Any]:
    path = source / _MANIFEST
    if not path.is_file():
        raise LibraryError(f"{source} was not written by finelap export, or not to its end: {_MANIFEST} is missing")
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != _FORMAT:
            raise LibraryError(f"{path} was written by a newer release: use that release")
        known = {"checkpoint": str, "dim": int, "clips": int}
        if any(type(manifest[name]) is not kind for name, kind in known.items()) or manifest["dim"] < 1:
            raise ValueError("a value has the wrong type")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LibraryError(f"{path} is not the manifest of an export: {error!r}") from error
    return dict(manifest)


def _import(shards: list[Path], folder: Path, manifest: dict[str, Any], progress: Progress) -> DatasetReport:
    checkpoint, dim, total = manifest["checkpoint"], manifest["dim"], manifest["clips"]
    audio = AudioFiles(folder / AUDIO_FOLDER)
    audio.clear_incoming()
    done = with_audio = 0
    store = Store(folder / RESTORING_FILE)
    try:
        with store.write() as change:
            queries.set_stamp(change, checkpoint, dim)
        for shard in shards:
            for rows in _read_groups(shard, dim):
                files = {row["sha256"]: (row.get("audio") or {}).get("bytes") for row in rows}
                staged = {sha256: audio.stage(data, sha256) for sha256, data in files.items() if data is not None}
                audio.place(staged)
                with_audio += len(staged)
                with store.write() as change:
                    for row in rows:
                        queries.insert(change, _encoded(row, dim))
                done += len(rows)
                progress("clips", done, total)
        if done != total:
            raise LibraryError(
                f"{shards[0].parent if shards else folder} has {done} of {total} clips: files are missing"
            )
        store.shrink_log()
    except (ValueError, TypeError, KeyError) as error:  # pyarrow's own errors are ValueErrors too
        raise LibraryError(f"the export is damaged: {error}") from error
    finally:
        store.close()
    return DatasetReport(done, with_audio, checkpoint)


def _read_groups(shard: Path, dim: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of a file, a row group at a time."""
    from pyarrow import parquet

    file = parquet.ParquetFile(shard)
    schema = _schema("", dim, "audio" in file.schema_arrow.names).remove_metadata()
    for number in range(file.num_row_groups):
        table = _as_exported(file.read_row_group(number), schema)
        if not len(table):
            continue
        plain = table.drop_columns(["embedding", "frames", "frame_scales"]).to_pylist()
        vectors = table.column("embedding").chunk(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        frames, scales = table.column("frames").chunk(0), table.column("frame_scales").chunk(0)
        codes = frames.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        factors = scales.flatten().to_numpy(zero_copy_only=False)
        stops = np.cumsum(frames.value_lengths().to_numpy(zero_copy_only=False))
        for row, vector, stop, before in zip(plain, vectors, stops, [0, *stops[:-1]], strict=True):
            row["embedding"] = vector
            row["codes"] = FrameCodes.of(codes[before:stop], factors[before:stop])
        yield plain


def _as_exported(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of the schema in its types, in one chunk each. Raises ValueError, KeyError."""
    import pyarrow as pa

    for name in schema.names:
        if name not in table.column_names:
            raise ValueError(f"the column {name!r} is missing")
    try:
        table = table.select(schema.names).cast(schema).combine_chunks()
    except (NotImplementedError, TypeError, OverflowError, pa.ArrowException) as error:
        raise ValueError(f"a column has the wrong type: {error}") from error
    for name in schema.names:
        if name != "audio" and any(map(_has_nulls, table.column(name).chunks)):
            raise ValueError(f"the column {name!r} has nulls")
    return table


def _has_nulls(array: pa.Array) -> bool:
    import pyarrow as pa

    return array.null_count > 0 or (pa.types.is_nested(array.type) and _has_nulls(array.flatten()))


def _encoded(row: dict[str, Any], dim: int) -> EncodedClip:
    if not _ID.fullmatch(row["id"]) or not _HASH.fullmatch(row["sha256"]) or not row["frame_hop"] > 0:
        raise ValueError(f"the row of clip {row['id']!r} is not valid")
    metadata = dump_metadata(json.loads(row["metadata"]))
    clip = Clip(
        id=row["id"],
        filename=check_text(row["filename"], "the file name"),
        sha256=row["sha256"],
        duration=float(row["duration"]),
        sample_rate=int(row["sample_rate"]),
        channels=int(row["channels"]),
        created=row["created"],
        metadata=json.loads(metadata),
    )
    frames, hop = row["codes"], float(row["frame_hop"])
    embedding = check_vector(row["embedding"], dim, "embedding")
    return EncodedClip(clip, metadata, embedding, frames.to_bytes(), hop, cut_segments(frames, hop))
