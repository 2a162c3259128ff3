"""Measures what the weight of words in the ranking (app.services.ranking.FusionWeights) is worth.

    python -m benchmarks.quality.fusion SOUNDS [SOUNDS ...] --work DIR

Each SOUNDS is a folder of labelled sounds, as for `python -m benchmarks.quality`. Queries are the labels, as they are
and with a typing error in each; relevant are the clips with the label. Clips have the file names of their packages, or
half of them only numbers, since names that say nothing are common. Two libraries are measured: `fit`, a sample of the
sounds of all packages but the validation packages of the bundled recipe, to choose a weight with, and `judge`, the
validation packages, which no choice has seen. Clips have neither tags nor other metadata, whose shares aren't measured.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from app.inference.engine import Engine
from app.services.ranking import WEIGHTS
from app.services.words import coverage, read_words
from benchmarks.common import REPO, machine, revision, section, table, write_json
from benchmarks.quality.retrieval import by_query
from benchmarks.quality.sounds import RECIPE, CachedModel, Embedded
from index import Clip, NewClip, SqliteLibrary
from model import FineLAP
from model.config import SAMPLE_RATE
from training.config import read_recipe
from training.data.audio_cache import AudioStore
from training.data.manifests import Item, read_labelled
from training.evaluation.validation import relevance

WORDS = (0.0, 1.0, 2.0, 3.0, 4.5, 6.0, 9.0, 14.0)
NAMED = (1.0, 0.5)  # share of clips whose file names say something
SAMPLE = 2500  # sounds of `fit`
QUERIES = 400  # of `fit`
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Sounds:
    """The sounds of one library: waveforms (n,), labels, and the names of their files where they come from."""

    waveforms: list[np.ndarray]
    labels: list[str]
    names: list[str]


def read(folders: Sequence[Path], work: Path) -> dict[str, Sounds]:
    """The two libraries."""
    recipe = read_recipe(RECIPE)
    rows: dict[Path, str] = {}
    items: list[Item] = []
    for folder in folders:
        for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[folder / row["audio"]] = Path(row["source"]).name
        items += [item for item in read_labelled(folder, exclude_groups=recipe.excluded_groups) if item.captions]
    judge = [item for item in items if item.group in recipe.validation_groups]
    others = [item for item in items if item.group not in recipe.validation_groups]
    chosen = np.random.default_rng(0).permutation(len(others))[:SAMPLE]
    found = {}
    for name, own in (("fit", [others[i] for i in sorted(chosen.tolist())]), ("judge", judge)):
        store = AudioStore(work / f"fusion-{name}.i16", own)
        kept = store.items
        found[name] = Sounds(list(store), [i.captions[0] for i in kept], [rows[i.path] for i in kept])
    return found


def misspelt(text: str, rng: np.random.Generator) -> str:
    """The text with one typing error in its longest word: a letter is missing, doubled, wrong, or two are exchanged."""
    word = max(text.split(), key=len)
    at, kind = int(rng.integers(1, max(2, len(word) - 1))), int(rng.integers(4))
    letter = str(rng.choice([letter for letter in _LETTERS if letter != word[at : at + 1].lower()]))
    wrong = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + letter + word[at + 1 :],
        word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
    )[kind]
    return text.replace(word, wrong, 1)


async def evidence(
    engine: Engine, library: SqliteLibrary, clips: Sequence[Clip], texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings (Q, D) of the texts as they are searched for, and their coverage by the clips (Q, N)."""

    async def call(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    state: Any = SimpleNamespace(engine=engine, library=library, read=call)
    columns = (WEIGHTS.name, WEIGHTS.tags, WEIGHTS.others)
    await engine.start()
    try:
        words = [await read_words(state, text) for text in texts]
        vectors = [(await engine.embed_texts([own.text]))[0] for own in words]
    finally:
        await engine.close(grace=0)
    return np.stack(vectors), np.array([[coverage(own, clip, columns) for clip in clips] for own in words])


def measure(model: CachedModel, sounds: Sounds, named: float) -> dict[str, dict[float, dict[str, float]]]:
    """For labels and misspelt labels: weight → metrics in percent, means over the queries."""
    rng = np.random.default_rng(1)
    labels = sorted(set(sounds.labels))
    labels = [labels[i] for i in sorted(rng.permutation(len(labels))[:QUERIES].tolist())]
    embedded = Embedded.of(model, sounds.waveforms)
    opaque = rng.random(len(sounds.names)) >= named
    names = [
        f"{n:05}.ogg" if hidden else name for n, (name, hidden) in enumerate(zip(sounds.names, opaque, strict=True))
    ]
    asked = {"label": labels, "misspelt": [misspelt(label, rng) for label in labels]}
    relevant, found = relevance(labels, sounds.labels), {}
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteLibrary.open(Path(folder), dim=model.dim, checkpoint=model.stamp) as library,
    ):
        clips = _fill(library, embedded, names, [len(own) / SAMPLE_RATE for own in sounds.waveforms])
        for kind, texts in asked.items():
            vectors, covered = asyncio.run(evidence(Engine(model.model), library, clips, texts))
            logits = embedded.logits(model, vectors)
            found[kind] = {
                weight: {
                    metric: 100 * float(values.mean())
                    for metric, values in by_query(logits + weight * covered, relevant).items()
                }
                for weight in WORDS
            }
    return found


def _fill(library: SqliteLibrary, embedded: Embedded, names: Sequence[str], seconds: Sequence[float]) -> list[Clip]:
    news = [
        NewClip(
            name,
            hashlib.sha256(b"%d" % n).hexdigest(),
            length,
            SAMPLE_RATE,
            1,
            {},
            vector,
            vector[None],
            0.16,
            b"%d" % n,
        )
        for n, (name, length, vector) in enumerate(zip(names, seconds, embedded.clips, strict=True))
    ]
    return [clip for clip, _ in library.add_many(news)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path, nargs="+", help="folders of labelled sounds")
    parser.add_argument("--checkpoint", type=Path, default=REPO / "checkpoints" / "finelap-small")
    parser.add_argument("--work", type=Path, required=True, help="folder for decoded sounds and embeddings")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    model = CachedModel(FineLAP.from_pretrained(options.checkpoint), options.work)
    results: dict[str, Any] = {}
    for name, sounds in read(options.sounds, options.work).items():
        for named in NAMED:
            with section(f"{name}, {named:.0%} named"):
                results[f"{name}, {named:.0%} named"] = measure(model, sounds, named)
    head = ["library", "query", *(f"{weight:g}" for weight in WORDS)]
    rows = [
        [library, kind, *(" ".join(f"{by[weight][metric]:.1f}" for metric in ("mAP@10", "R@1")) for weight in WORDS)]
        for library, own in results.items()
        for kind, by in own.items()
    ]
    print("mAP@10 and R@1 by the weight of words:")
    print(table(head, rows))
    write_json(options.json, {"machine": machine(), "revision": revision(REPO), "results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
