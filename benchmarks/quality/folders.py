"""Evaluates checkpoints on folders of retrieval and grounding tasks that you have, under one protocol, in one table.

    python -m benchmarks.quality.folders CHECKPOINT... --retrieval FOLDER... --grounding FOLDER... --out DIR

A retrieval folder is laid out as MTEB's datasets are on the hub (MAEB's audio tasks among them): `corpus`, `queries`
and `qrels`, each as Parquet files in a folder of that name (or of a name that ends in it, such as `en-corpus`) or as
`corpus.jsonl`, `queries.jsonl` and `qrels/*.tsv`. Rows have `id` (or `_id`) and `text` or `audio`; either side may be
the one with audio. A row of `qrels` has `query-id`, `corpus-id` and `score`, and counts if its score is positive.

A grounding folder has `*.jsonl` files, whose rows have `audio` (a path in the folder), `phrase` (or `query`, `caption`)
and `segments` (or `timestamps`, `relevant_windows`): lists of [onset, offset] in seconds, empty if the phrase does not
sound.

Audio is a path in the folder, or an object with `bytes`, which is written to DIR/audio first. CHECKPOINT is whatever
`finelap evaluate` takes, models of other families included. Needs the extras `train` and `evaluate`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.external.contract import load_external
from model.finelap import FineLAP
from training.data.manifests import Item, Phrase
from training.evaluation.benchmark import EvaluationSettings, evaluate
from training.evaluation.protocol import PROTOCOLS
from training.evaluation.readers import Dataset, DatasetError
from training.evaluation.tables import PeakMemory, Row, tables, write_tables

PHRASES = ("phrase", "query", "caption")
SEGMENTS = ("segments", "timestamps", "relevant_windows")


def read_retrieval(folder: Path, work: Path) -> Dataset:
    """A retrieval task in MTEB's layout. Clips that no text belongs to stay as candidates. Raises DatasetError."""
    corpus, queries = _by_id(folder, "corpus"), _by_id(folder, "queries")
    heard = [
        name for name, rows in (("corpus", corpus), ("queries", queries)) if any("audio" in r for r in rows.values())
    ]
    if len(heard) != 1:
        raise DatasetError(
            f"{folder}: want audio on one side, the corpus or the queries; found it in {heard or 'neither'}"
        )
    clips, texts = (corpus, queries) if heard == ["corpus"] else (queries, corpus)
    captions: dict[str, list[str]] = {clip: [] for clip in clips}
    for row in _rows(folder, "qrels"):
        query, document = str(row["query-id"]), str(row["corpus-id"])
        clip, text = (document, query) if heard == ["corpus"] else (query, document)
        if float(row.get("score", 1)) > 0:
            if clip not in clips or text not in texts:
                raise DatasetError(f"{folder}: qrels name {clip!r} and {text!r}, which are not both there")
            captions[clip].append(str(texts[text]["text"]))
    items = [
        Item(clip, _audio(row["audio"], clip, folder, work), tuple(dict.fromkeys(captions[clip])))
        for clip, row in clips.items()
    ]
    if not any(item.captions for item in items):
        raise DatasetError(f"{folder}: no clip has a text")
    return Dataset(folder.name, "retrieval", tuple(items))


def read_grounding(folder: Path, work: Path) -> Dataset:
    """A grounding task: the phrases asked of each recording, with their segments. Raises DatasetError."""
    asked: dict[str, tuple[Any, dict[str, list[tuple[float, float]]]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                audio, phrase = row["audio"], str(_first(row, PHRASES))
                pairs = [(float(a), float(b)) for a, b in _first(row, SEGMENTS)]
            except (ValueError, KeyError, TypeError) as error:
                raise DatasetError(f"{path}, line {number}: not a phrase with segments ({error})") from error
            name = audio if isinstance(audio, str) else str(audio.get("path") or f"{path.stem}-{number}")
            phrases = asked.setdefault(name, (audio, {}))[1]
            phrases.setdefault(phrase, []).extend((a, b) for a, b in pairs if a < b)
    if not asked:
        raise DatasetError(f"{folder}: no .jsonl file with rows")
    items = [
        Item(
            name,
            _audio(audio, name, folder, work),
            (),
            tuple(Phrase(phrase, tuple(sorted(segments))) for phrase, segments in phrases.items()),
        )
        for name, (audio, phrases) in asked.items()
    ]
    return Dataset(folder.name, "grounding", tuple(items))


def _by_id(folder: Path, part: str) -> dict[str, dict[str, Any]]:
    found = {str(row["_id"] if "_id" in row else row["id"]): row for row in _rows(folder, part)}
    if not found:
        raise DatasetError(f"{folder}: no {part}, neither as {part}/*.parquet nor as {part}.jsonl")
    return found


def _rows(folder: Path, part: str) -> Iterator[dict[str, Any]]:
    """The rows of a part of a retrieval task, whatever form it has."""
    places = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.endswith(part)]
    for path in [file for place in places for file in sorted(place.rglob("*.parquet"))]:
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(256):
            yield from batch.to_pylist()
    for path in [*folder.glob(f"{part}.jsonl"), *(file for place in places for file in sorted(place.glob("*.jsonl")))]:
        yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    for path in [file for place in places for file in sorted(place.glob("*.tsv"))]:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file, delimiter="\t")


def _audio(cell: Any, name: str, folder: Path, work: Path) -> Path:
    """The file of an audio cell; its bytes are written to `work` where there is no file."""
    if isinstance(cell, str):
        return folder / cell
    if cell.get("bytes") is None:
        return folder / str(cell["path"])
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{folder.name}-{name}")
    suffix = Path(str(cell.get("path") or "")).suffix
    path = work / (safe if safe.endswith(suffix or "\0") else safe + (suffix or ".wav"))
    work.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        path.write_bytes(cell["bytes"])
    return path


def _first(row: dict[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise KeyError(f"none of {', '.join(names)}")


def measure(source: str, datasets: Sequence[Dataset], settings: EvaluationSettings, device: str) -> Row:
    """Evaluates one checkpoint on all tasks that it can do."""
    memory, began = PeakMemory(device), time.perf_counter()
    memory.reset()
    model: Any = load_external(source, device=device) or FineLAP.from_pretrained(source, device=device)
    able = [d for d in datasets if d.task == "retrieval" or model.traits.frames is not None]
    reports = [evaluate(model, dataset, settings=settings, progress=True) for dataset in able]
    parameters = sum(p.numel() for p in model.parameters())
    return Row(source, tuple(reports), parameters, memory.megabytes(), time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.folders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--retrieval", nargs="+", type=Path, default=[], metavar="FOLDER")
    parser.add_argument("--grounding", nargs="+", type=Path, default=[], metavar="FOLDER")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="full", help="as in finelap evaluate (full)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for table.md and table.json")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if not options.retrieval and not options.grounding:
        parser.error("give a folder with --retrieval or --grounding")
    work = options.out / "audio"
    try:
        datasets = [read_retrieval(folder, work) for folder in options.retrieval]
        datasets += [read_grounding(folder, work) for folder in options.grounding]
    except (DatasetError, OSError) as error:
        sys.exit(str(error))
    settings = EvaluationSettings(pictures=0, protocol=PROTOCOLS[options.protocol])
    rows: list[Row] = []
    for source in options.checkpoints:
        rows.append(measure(source, datasets, settings, options.device))
        write_tables(options.out, rows)
    print("\n".join(tables(rows)))


if __name__ == "__main__":
    main()
