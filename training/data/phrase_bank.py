"""Phrases in clusters, negatives sampled from them, and the readers of label lists that banks are made of.

Implements cluster-based negative sampling (Algorithm 1 of arXiv 2604.01155). A bank file has one cluster per line,
`{"phrase": centroid, "alternatives": [phrase, …]}`, as published.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

SHIPPED = Path(__file__).with_name("phrase_bank.jsonl")
LABEL_COLUMNS = ("phrase", "label", "labels", "display_name", "event_label")  # searched in this order
TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "the sound of {}",
    "the sound of a {}",
    "{} sound",
    "a recording of {}",
    "sound effect of {}",
)


class PhraseError(ValueError):
    """An empty or unknown phrase, an invalid label list, or a bank too small for what is requested."""


class PhraseBank:
    """Clusters of phrases. Looking up a phrase that is in no cluster raises PhraseError.

    Clusters that share a phrase (the published bank has three such pairs) are sampled as one; `cluster_of` maps each
    phrase to the index of the first of them.
    """

    def __init__(self, clusters: Sequence[Sequence[str]]) -> None:
        self.clusters = [tuple(dict.fromkeys(c)) for c in clusters if c]
        if any(not phrase.strip() for cluster in self.clusters for phrase in cluster):
            raise PhraseError("an empty phrase")
        joined: dict[int, dict[str, None]] = {}  # index of the first cluster → phrases of all that share one with it
        self.cluster_of: dict[str, int] = {}
        for number, cluster in enumerate(self.clusters):
            joined[number] = dict.fromkeys(cluster)
            for other in sorted({self.cluster_of[p] for p in cluster if p in self.cluster_of}, reverse=True):
                number, last = min(number, other), max(number, other)
                joined[number] |= joined.pop(last)
            self.cluster_of |= dict.fromkeys(joined[number], number)
        self._members = {number: tuple(phrases) for number, phrases in sorted(joined.items())}

    @classmethod
    def read(cls, path: Path) -> PhraseBank:
        """Reads a bank in the published JSONL form. Raises PhraseError with the line number."""
        clusters = []
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        row = json.loads(line)
                        cluster = [row["phrase"], *row["alternatives"]]
                        if isinstance(row["alternatives"], str) or any(not isinstance(p, str) for p in cluster):
                            raise PhraseError('want {"phrase": text, "alternatives": [text, …]}')
                        if any(not p.strip() for p in cluster):
                            raise PhraseError("an empty phrase")
                    except (ValueError, KeyError, TypeError) as error:
                        what = f"no {error}" if isinstance(error, KeyError) else str(error)
                        raise PhraseError(f"{path.name}, line {number}: {what}") from error
                    clusters.append(cluster)
        if not clusters:
            raise PhraseError(f"{path.name}: no phrases")
        return cls(clusters)

    def write(self, path: Path) -> None:
        """Writes the published JSONL form, with each cluster's first phrase as its centroid."""
        rows = [json.dumps({"phrase": c[0], "alternatives": list(c)}, ensure_ascii=False) for c in self.clusters]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")

    @classmethod
    def assign(
        cls, phrases: Sequence[str], centroids: Sequence[str], embed: Callable[[list[str]], np.ndarray]
    ) -> PhraseBank:
        """A bank with each phrase in the cluster of its nearest centroid by cosine similarity; no empty clusters.

        `embed` maps n texts to (n, dim) unit-length embeddings.
        """
        unique = list(dict.fromkeys(phrases))
        nearest = (embed(unique) @ embed(list(centroids)).T).argmax(axis=1)
        clusters: dict[int, list[str]] = {}
        for phrase, cluster in zip(unique, nearest, strict=True):
            clusters.setdefault(int(cluster), []).append(phrase)
        return cls([clusters[c] for c in sorted(clusters)])

    def extended(
        self, phrases: Sequence[str], embed: Callable[[list[str]], np.ndarray]
    ) -> tuple[PhraseBank, dict[str, float]]:
        """The bank with more phrases, each in the cluster of its nearest centroid (first phrase) by cosine similarity.

        Phrases that the bank already contains, ignoring case, join their own cluster. Also returns the similarities of
        the others to their centroids. `embed` maps n texts to (n, dim) unit-length embeddings.
        """
        known = {phrase.casefold(): number for phrase, number in reversed(self.cluster_of.items())}
        unique = [p for p in dict.fromkeys(phrases) if p not in self.cluster_of]
        new = [p for p in unique if p.casefold() not in known]
        where = {p: known[p.casefold()] for p in unique if p.casefold() in known}
        cosines: dict[str, float] = {}
        if new:
            similarity = embed(new) @ embed([cluster[0] for cluster in self.clusters]).T
            for phrase, row in zip(new, similarity, strict=True):
                where[phrase] = int(row.argmax())
                cosines[phrase] = float(row.max())
        clusters = [list(cluster) for cluster in self.clusters]
        for phrase in unique:
            clusters[where[phrase]].append(phrase)
        return PhraseBank(clusters), cosines

    def negatives(self, positives: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
        """Up to `count` phrases from different clusters without a positive; fewer if there are too few clusters."""
        taken = {self._cluster(p) for p in positives}
        free = np.array([i for i in self._members if i not in taken], dtype=int)
        drawn = rng.choice(free, min(count, len(free)), replace=False)
        return [self._members[c][rng.integers(len(self._members[c]))] for c in drawn]

    def alternative(self, phrase: str, rng: np.random.Generator) -> str:
        """A random phrase of the same cluster, possibly the same one."""
        cluster = self._members[self._cluster(phrase)]
        return cluster[rng.integers(len(cluster))]

    def sample(
        self, positives: Sequence[str], total: int, rng: np.random.Generator, swap: float = 0.1
    ) -> tuple[list[str], int]:
        """Algorithm 1: `total` phrases for a clip, positives first and in order, and the number of positives.

        Each positive is replaced with probability `swap` by another phrase of its cluster that is not yet among the
        positives. Negatives fill up to `total`: clusters without a positive are drawn without replacement, one phrase
        from each. Raises PhraseError for unknown or repeated positives, for more than `total` of them, and if there are
        too few clusters.
        """
        chosen = list(positives)
        if len(set(chosen)) != len(chosen):
            raise PhraseError("a positive occurs twice: merge the segments of equal phrases")
        if len(chosen) > total:
            raise PhraseError(f"{len(chosen)} positives exceed the {total} phrases of a clip")
        for i, phrase in enumerate(positives):
            if rng.random() < swap:
                others = [p for p in self._members[self._cluster(phrase)] if p not in chosen and p not in positives]
                if others:
                    chosen[i] = others[rng.integers(len(others))]
        wanted = total - len(chosen)
        drawn = self.negatives(positives, wanted, rng)
        if len(drawn) < wanted:
            raise PhraseError(f"{wanted} negatives requested, but only {len(drawn)} clusters have no positive")
        return chosen + drawn, len(chosen)

    def _cluster(self, phrase: str) -> int:
        try:
            return self.cluster_of[phrase]
        except KeyError:
            raise PhraseError(f"unknown phrase {phrase!r}: `finelap cluster` adds phrases to a bank") from None


def phrased(label: str, rng: np.random.Generator) -> str:
    """The label in a random query template, such as "the sound of {}"."""
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(label)


def caption_of(labels: Sequence[str], rng: np.random.Generator) -> str:
    """A caption for a scene with these sounds, in the given order."""
    if len(labels) == 1:
        return phrased(labels[0], rng)
    joined = ", ".join(labels[:-1]) + (" and " if rng.random() < 0.6 else ", then ") + labels[-1]
    return joined if rng.random() < 0.6 else f"the sound of {joined}"


def read_labels(path: Path, column: str | None = None, separator: str | None = None) -> list[str]:
    """Phrases of a label list in file order, duplicates included, with runs of white space collapsed.

    - `.jsonl`: lines with `phrases` (a manifest), `phrase` and `alternatives` (a bank), or `label` (a folder of sounds;
      null if there is none). Captions describe whole clips and are ignored.
    - `.csv`, `.tsv`: `column`, by default the first of LABEL_COLUMNS; `separator` splits a cell into several phrases.
    - otherwise: one phrase per line; blank lines are skipped.

    Raises PhraseError with the line number, and for a file without phrases.
    """
    kind = path.suffix.lower()
    if kind == ".jsonl":
        found = _labels_of_json(path)
    elif kind in (".csv", ".tsv"):
        found = _labels_of_table(path, "\t" if kind == ".tsv" else ",", column, separator)
    else:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        found = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    phrases = []
    for number, phrase in found:
        if not isinstance(phrase, str) or not phrase.strip():
            what = "an empty phrase" if isinstance(phrase, str) else f"{phrase!r} is not a phrase"
            raise PhraseError(f"{path.name}, line {number}: {what}")
        phrases.append(" ".join(phrase.split()))
    if not phrases:
        raise PhraseError(f"{path.name}: no phrases")
    return phrases


def _labels_of_json(path: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                if "alternatives" in row:
                    phrases = [row["phrase"], *row["alternatives"]]
                elif "label" in row:
                    phrases = [] if row["label"] is None else [row["label"]]
                elif "phrases" in row or "caption" in row:
                    phrases = [p["phrase"] for p in row.get("phrases") or []]
                else:
                    raise PhraseError("neither phrases nor a label")
            except (ValueError, KeyError, TypeError) as error:
                what = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise PhraseError(f"{path.name}, line {number}: {what}") from error
            yield from ((number, phrase) for phrase in phrases)


def _labels_of_table(
    path: Path, delimiter: str, column: str | None, separator: str | None
) -> Iterator[tuple[int, object]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        names = list(rows.fieldnames or [])
        chosen = column or next((c for c in LABEL_COLUMNS if c in names), None)
        if chosen not in names:
            raise PhraseError(f"{path.name}: no column {column or 'of labels'}; it has {', '.join(names)}")
        for row in rows:
            cell = row[chosen] or ""
            for phrase in cell.split(separator) if separator else [cell]:
                yield rows.line_num, phrase
