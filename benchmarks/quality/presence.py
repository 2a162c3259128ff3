"""Whether an answer says that a sound is not there: phrases in a library, phrases that are not, and nonsense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient

from benchmarks.quality.figures import Figure, auroc, balanced_accuracy, mean
from benchmarks.quality.recordings import add
from benchmarks.quality.sounds import Alike, CachedModel, Embedded, Sizes, Sounds

MASHED = (
    "asdf jkl|qwerty|sdfjkh sdf|lkjhg|zxcv zxcv|asdfasdf|poiu ytre|hjkl hjkl|wsxedc|dfgh dfgh ert|aaaaaa|qqq www eee"
)
SENTENCES = (
    "the invoice is due next month|my cousin studies law in Vienna|a triangle has three sides|please reset my password"
    "|the price of copper fell|seven is a prime number|he signed the contract|what is the capital of Peru"
    "|the recipe needs two eggs|this chapter is about grammar|our meeting moved to Tuesday|green ideas and old maps"
)


@dataclass(frozen=True)
class SubLibrary:
    """Half of the labels with their sounds, phrases that are in it, and phrases that are not."""

    sounds: list[int]  # of the store
    present: list[str]
    absent: list[str]


def libraries(sounds: Sounds, alike: Alike, sizes: Sizes) -> list[SubLibrary]:
    """Random libraries. A phrase that is absent from one is not alike any label in it."""
    return [
        _library(sounds, alike, sizes.phrases, np.random.default_rng([19, number])) for number in range(sizes.libraries)
    ]


def _library(sounds: Sounds, alike: Alike, count: int, rng: np.random.Generator) -> SubLibrary:
    labels = set(sounds.label)
    outside: set[str] = set()
    absent: list[str] = []
    for phrase in map(str, rng.permutation(sounds.phrases)):
        together = outside | alike.among(phrase, labels)
        if len(absent) < count and phrase not in outside and len(together) <= len(labels) / 2:
            outside = together
            absent.append(phrase)
    for label in map(str, rng.permutation(sorted(labels - outside))):  # down to half of the labels
        if len(outside) < len(labels) // 2:
            outside.add(label)
    inside = [i for i, label in enumerate(sounds.label) if label not in outside]
    there = [phrase for phrase in sounds.phrases if phrase not in outside]
    return SubLibrary(inside, [str(p) for p in rng.permutation(there)[:count]], absent)


def nonsense(count: int) -> list[str]:
    """`count` strings that mean nothing or no sound: random letters, keys struck at random, unrelated sentences."""
    rng = np.random.default_rng(20)
    letters = ["".join(rng.choice(list("bcdfghjklmnpqrstvwxzaeiou"), rng.integers(5, 10))) for _ in range(count)]
    known = [text for pair in zip(MASHED.split("|"), SENTENCES.split("|"), strict=True) for text in pair]
    return (known + letters)[:count]


@dataclass(frozen=True)
class Answers:
    """For each query, whether its sound is there (None: it is nonsense) and its score or number of matches."""

    there: list[bool | None]
    value: list[float]


def by_sound(model: CachedModel, sounds: Sounds, parts: list[SubLibrary], strings: list[str]) -> Answers:
    """The best score before the sigmoid of each query over its library, by sound alone."""
    every = Embedded.of(model, list(sounds.store))
    there: list[bool | None] = []
    values: list[float] = []
    for part in parts:
        queries = [*part.present, *part.absent, *strings]
        logits = every.logits(model, model.encode_text(queries).numpy())[:, part.sounds]
        there += [True] * len(part.present) + [False] * len(part.absent) + [None] * len(strings)
        values += logits.max(axis=1).tolist()
    return Answers(there, values)


def sound_figures(answers: Answers, cutoff: float | None) -> dict[str, Figure]:
    """Figures of scores at the cutoff (a score), or at the cutoff with the best balanced accuracy if it is None."""
    scores = np.array(answers.value)
    kind = "the best cutoff" if cutoff is None else "the cutoff"
    phrase, there = _phrases(answers)
    at = best_cutoff(scores[phrase], there) if cutoff is None else float(np.log(cutoff / (1 - cutoff)))
    return {"AUROC, by sound": auroc(scores[phrase], there)} | _figures(answers, scores >= at, f"by sound at {kind}")


def best_cutoff(scores: np.ndarray, there: np.ndarray) -> float:
    """The score from which counting as present has the highest balanced accuracy."""
    cuts = np.unique(scores)
    return float(cuts[np.argmax([balanced_accuracy(scores >= cut, there).value for cut in cuts])])


def by_service(
    client: TestClient, sounds: Sounds, part: SubLibrary, strings: list[str]
) -> tuple[Answers | None, str | None]:
    """Matches of each query in a library of the service, under the files' original names; or why there are none."""
    items = [sounds.store.items[i] for i in part.sounds]
    names = [Path(sounds.manifest[item.audio_id].get("source") or item.audio_id).name for item in items]
    add(client, [(name, item.path.read_bytes()) for name, item in zip(names, items, strict=True)])
    queries = [*part.present, *part.absent, *strings]
    matches = []
    for query in queries:
        answer = client.post("/search", json={"query": query, "k": 1})
        answer.raise_for_status()
        body = answer.json()
        if "matches" not in body:
            return None, "this version's searches have no `matches`"
        if body["matches"] is None:
            return None, "the checkpoint has no match cutoff"
        matches.append(float(body["matches"]))
    there = [True] * len(part.present) + [False] * len(part.absent) + [None] * len(strings)
    return Answers(there, matches), None


def service_figures(found: list[Answers]) -> dict[str, Figure]:
    """Figures of the numbers of matches of all libraries."""
    answers = Answers([t for a in found for t in a.there], [v for a in found for v in a.value])
    return _figures(answers, np.array(answers.value) > 0, "by the service")


def _figures(answers: Answers, answered: np.ndarray, how: str) -> dict[str, Figure]:
    phrase, there = _phrases(answers)
    empty = ~answered[~phrase]
    figures = {
        f"balanced accuracy, {how}": balanced_accuracy(answered[phrase], there),
        f"present phrases with matches, {how}": mean(answered[phrase][there]),
        f"absent phrases with matches, {how}": mean(answered[phrase][~there]),
    }
    return figures | ({f"nonsense without matches, {how}": mean(empty)} if len(empty) else {})


def _phrases(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are to phrases, and which of those phrases are there."""
    phrase = np.array([there is not None for there in answers.there])
    return phrase, np.array([there for there in answers.there if there is not None])
