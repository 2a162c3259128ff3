"""Retrieval in time: order, overlap, absence and repetition, of which one embedding for a clip says little.

A group has six clips of two sounds A and B over faint noise: A then B, B then A, both at once, A alone, B alone, and A
twice. Each group is asked four questions in words, and the right clip must come before the group's others. Three ways
through the service are compared: the plain embedding of the sentence, our own operators (sequences, `without`), and the
scores of the clip's frames.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from starlette.testclient import TestClient

from benchmarks.common import encode
from benchmarks.quality.figures import Figure, mean
from benchmarks.quality.recordings import SILENCE, background_samples, choose_sounds
from benchmarks.quality.sounds import Sounds
from model.config import SAMPLE_RATE
from model.detection import find_moments
from training.data.activity import peak, rms
from training.data.mixer import FLOOR

SECONDS = 10.0  # of a clip
LONGEST = 3.0  # seconds of a sound; longer ones are cut
SNR_DB = 20.0  # of every sound over the noise, so that only time differs
MAX_GAP = SECONDS  # of sequences: the order counts, not the pause
SCENES = ("A then B", "B then A", "A while B", "A", "B", "two A")
# question → (sentence, the right scenes)
QUESTIONS = {
    "A then B": ("{a} followed by {b}", ("A then B",)),
    "A while B": ("{a} while {b}", ("A while B",)),
    "A without B": ("{a} without {b}", ("A", "two A")),
    "two A": ("{a} twice", ("two A",)),
}


@dataclass(frozen=True)
class Group:
    """Two labels, and a clip (n,) at 16 kHz of each scene."""

    a: str
    b: str
    clips: dict[str, np.ndarray]


def groups(sounds: Sounds, count: int) -> list[Group]:
    """`count` groups of two sounds of the store whose labels are not alike; the same for every checkpoint."""
    alike, made = sounds.alike([SILENCE.label]), []
    for number in range(count):
        rng = np.random.default_rng([19, number])
        chosen = choose_sounds(sounds, lambda i: True, SILENCE.label, alike, rng, 2)
        bed = background_samples(SILENCE, sounds, round(SECONDS * SAMPLE_RATE), rng)
        (a, first), (b, second) = ((label, sound[: round(LONGEST * SAMPLE_RATE)]) for label, sound in chosen)
        made.append(Group(a, b, {scene: _scene(scene, first, second, bed) for scene in SCENES}))
    return made


def _scene(scene: str, a: np.ndarray, b: np.ndarray, bed: np.ndarray) -> np.ndarray:
    early, late = round(1.0 * SAMPLE_RATE), round(6.0 * SAMPLE_RATE)
    placed = {
        "A then B": ((a, early), (b, late)),
        "B then A": ((b, early), (a, late)),
        "A while B": ((a, early), (b, early)),
        "A": ((a, early),),
        "B": ((b, early),),
        "two A": ((a, early), (a, late)),
    }[scene]
    samples = bed.copy()
    for sound, start in placed:
        samples[start : start + len(sound)] += sound * (FLOOR * 10 ** (SNR_DB / 20) / max(rms(sound), 1e-4))
    return np.asarray(samples * (0.5 / max(peak(samples), 1e-4)), np.float32)


def temporal_figures(client: TestClient, made: list[Group]) -> dict[str, Figure]:
    """For each question and way, the share of groups in which a right clip comes first; and what guessing gets."""
    ids = [_add(client, number, group) for number, group in enumerate(made)]
    ways = {"plain": _plain, "operators": _operators, "frames": _frames}
    figures: dict[str, Figure] = {}
    for question, (_, right) in QUESTIONS.items():
        for way, rank in ways.items():
            found = []
            for number, (group, clips) in enumerate(zip(made, ids, strict=True)):
                best = rank(client, question, group, number, clips)
                if best is not None:
                    found.append(float(best in {clips[scene] for scene in right}))
            if found:
                figures[f"{question}: {way}"] = mean(np.array(found))
        figures[f"{question}: guessing"] = mean(np.full(len(made), len(right) / len(SCENES)))
    return figures


def _add(client: TestClient, number: int, group: Group) -> dict[str, str]:
    """Adds a group's clips under names that say nothing; returns scene → clip id."""
    files = [("files", (f"{number}-{n}.wav", encode(group.clips[scene]))) for n, scene in enumerate(SCENES)]
    metadata = json.dumps([{"group": number}] * len(SCENES))
    answer = client.post("/clips", files=files, data={"metadata": metadata})
    answer.raise_for_status()
    return {scene: str(clip["id"]) for scene, clip in zip(SCENES, answer.json()["clips"], strict=True)}


def _first(client: TestClient, path: str, body: dict[str, object], number: int) -> str | None:
    """The id of the first hit among a group's clips; "" if nothing is found."""
    answer = client.post(path, json=body | {"k": len(SCENES), "filter": {"group": number}})
    answer.raise_for_status()
    hits = answer.json()["hits"]
    return str(hits[0]["clip"]["id"]) if hits else ""


def _plain(client: TestClient, question: str, group: Group, number: int, clips: dict[str, str]) -> str | None:
    sentence = QUESTIONS[question][0].format(a=group.a, b=group.b)
    return _first(client, "/search", {"query": sentence, "mode": "semantic"}, number)


def _operators(client: TestClient, question: str, group: Group, number: int, clips: dict[str, str]) -> str | None:
    """None where there is no operator: two sounds at once."""
    if question == "A without B":
        return _first(client, "/search", {"query": group.a, "without": [group.b], "mode": "semantic"}, number)
    sequence = {"A then B": [group.a, group.b], "two A": [group.a, group.a]}.get(question)
    if sequence is None:
        return None
    return _first(client, "/search/moments", {"sequence": sequence, "max_gap": MAX_GAP}, number)


def _frames(client: TestClient, question: str, group: Group, number: int, clips: dict[str, str]) -> str | None:
    """The clip that fits best by the scores of its frames for A and B."""
    scores = {}
    for clip in clips.values():
        fields = {"clip_id": clip, "phrases": [group.a, group.b], "frames": "true", "encoding": "base64"}
        answer = client.post("/detect", data=fields)
        answer.raise_for_status()
        body = answer.json()
        a, b = (np.frombuffer(base64.b64decode(p["frame_scores"]), "<f4") for p in body["phrases"])
        scores[clip] = RULES[question](a, b, body["frame_hop"], body["duration"])
    return max(scores, key=lambda clip: scores[clip])


def _then(a: np.ndarray, b: np.ndarray, hop: float, duration: float) -> float:
    """The best of the weaker score of a frame of A and a later one of B, compared with the other order."""

    def ordered(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.minimum(np.maximum.accumulate(first)[:-1], second[1:]).max(initial=0.0))

    return ordered(a, b) - ordered(b, a)


def _while(a: np.ndarray, b: np.ndarray, hop: float, duration: float) -> float:
    """The best frame of the weaker of the two."""
    return float(np.minimum(a, b).max())


def _without(a: np.ndarray, b: np.ndarray, hop: float, duration: float) -> float:
    """How much surer A is than B."""
    return float(a.max() - b.max())


def _twice(a: np.ndarray, b: np.ndarray, hop: float, duration: float) -> float:
    """The score of the second best moment of A that is apart from the best."""
    moments = find_moments(a, hop, duration, 2)
    return moments[1].score if len(moments) > 1 else 0.0


RULES: dict[str, Callable[[np.ndarray, np.ndarray, float, float], float]] = {
    "A then B": _then,
    "A while B": _while,
    "A without B": _without,
    "two A": _twice,
}
