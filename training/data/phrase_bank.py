"""Phrases in clusters, and negatives drawn from clusters that a clip has nothing of.

Knows nothing of audio or models: embeddings are given to it. Source: cluster-based negative sampling (Algorithm 1) of
arXiv 2604.01155; a bank's file has lines of `{"phrase": centroid, "alternatives": [phrase, …]}`, as published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

SHIPPED = Path(__file__).with_name("phrase_bank.jsonl")
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
    """An empty phrase, a phrase that the bank does not have, or a bank that cannot give what is asked of it."""


class PhraseBank:
    """Clusters of phrases. A phrase asked for that is in none is a PhraseError.

    Clusters that share a phrase, of which the published bank has three pairs, count as one wherever something is drawn;
    `cluster_of` gives each phrase the number of the first of them.
    """

    def __init__(self, clusters: Sequence[Sequence[str]]) -> None:
        self.clusters = [tuple(dict.fromkeys(c)) for c in clusters if c]
        if any(not phrase.strip() for cluster in self.clusters for phrase in cluster):
            raise PhraseError("an empty phrase")
        joined: dict[int, dict[str, None]] = {}  # number of the first → phrases of it and of those that it shares with
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
        """A bank in the published JSONL form; the centroid is one of the cluster. PhraseError names the line."""
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
        """The published JSONL form, first phrases as centroids."""
        rows = [json.dumps({"phrase": c[0], "alternatives": list(c)}, ensure_ascii=False) for c in self.clusters]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")

    @classmethod
    def assign(
        cls, phrases: Sequence[str], centroids: Sequence[str], embed: Callable[[list[str]], np.ndarray]
    ) -> PhraseBank:
        """Each phrase to the centroid nearest by cosine; `embed` gives unit rows. Empty clusters are left out."""
        unique = list(dict.fromkeys(phrases))
        nearest = (embed(unique) @ embed(list(centroids)).T).argmax(axis=1)
        clusters: dict[int, list[str]] = {}
        for phrase, cluster in zip(unique, nearest, strict=True):
            clusters.setdefault(int(cluster), []).append(phrase)
        return cls([clusters[c] for c in sorted(clusters)])

    def extended(
        self, phrases: Sequence[str], embed: Callable[[list[str]], np.ndarray]
    ) -> tuple[PhraseBank, dict[str, float]]:
        """The bank with further phrases, each in the cluster whose first phrase, its centroid, is nearest by cosine.

        A phrase that the bank has, in whatever case, joins the cluster it is in. Also answers, for the others, their
        cosine with the centroid. `embed` gives unit rows.
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
        """`count` phrases, one of each of as many clusters that hold no positive; fewer if there are not so many."""
        taken = {self._cluster(p) for p in positives}
        free = np.array([i for i in self._members if i not in taken], dtype=int)
        drawn = rng.choice(free, min(count, len(free)), replace=False)
        return [self._members[c][rng.integers(len(self._members[c]))] for c in drawn]

    def alternative(self, phrase: str, rng: np.random.Generator) -> str:
        """A phrase of the same cluster, perhaps the same."""
        cluster = self._members[self._cluster(phrase)]
        return cluster[rng.integers(len(cluster))]

    def sample(
        self, positives: Sequence[str], total: int, rng: np.random.Generator, swap: float = 0.1
    ) -> tuple[list[str], int]:
        """Algorithm 1: `total` phrases to ask of a clip, its positives first and in order, and how many those are.

        Each positive is, with the probability `swap`, replaced by another phrase of its cluster, never by one that is
        already among the positives. The negatives fill up to `total`: clusters without a positive are drawn without
        replacement, and one phrase of each. PhraseError if the positives are more than `total`, repeat themselves or
        are unknown, or if there are not enough clusters.
        """
        asked = list(positives)
        if len(set(asked)) != len(asked):
            raise PhraseError("a positive is given twice: put the segments of one phrase together")
        if len(asked) > total:
            raise PhraseError(f"{len(asked)} positives are more than the {total} phrases of a clip")
        for i, phrase in enumerate(positives):
            if rng.random() < swap:
                others = [p for p in self._members[self._cluster(phrase)] if p not in asked and p not in positives]
                if others:
                    asked[i] = others[rng.integers(len(others))]
        wanted = total - len(asked)
        drawn = self.negatives(positives, wanted, rng)
        if len(drawn) < wanted:
            raise PhraseError(f"{wanted} negatives are asked for, and only {len(drawn)} clusters hold no positive")
        return asked + drawn, len(asked)

    def _cluster(self, phrase: str) -> int:
        try:
            return self.cluster_of[phrase]
        except KeyError:
            raise PhraseError(f"unknown phrase {phrase!r}: `finelap cluster` adds phrases to a bank") from None


def phrased(label: str, rng: np.random.Generator) -> str:
    """The label as somebody might ask for it."""
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(label)


def caption_of(labels: Sequence[str], rng: np.random.Generator) -> str:
    """A caption for a scene with these sounds, in the order given."""
    if len(labels) == 1:
        return phrased(labels[0], rng)
    joined = ", ".join(labels[:-1]) + (" and " if rng.random() < 0.6 else ", then ") + labels[-1]
    return joined if rng.random() < 0.6 else f"the sound of {joined}"
