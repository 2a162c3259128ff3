"""Compares rules that exclude clips from a search for one sound without another, on labelled sounds and mixtures.

For pairs of kinds (a, b), "a without b" is searched in a library of all sounds plus four overlapping mixtures of a and
b, with b at −5 to +5 dB of a. Sounds of a are wanted; mixtures and sounds of b are unwanted. The rules use what the
service has: clip and frame embeddings. SOUNDS is a folder of labelled sounds, as filled by
`python -m training.recipes.fetch_sounds`:

    python -m benchmarks.index.exclusion ../shared/sfx --out without.json

The checkpoint was trained on most of these sounds, though not on the mixtures: the table compares rules and does not
predict the results on other libraries.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.audio.decode import decode
from model import FineLAP
from model.detection import median_smooth

KINDS = {  # query → words of which a label has one; only labels of these words and of harmless others
    "dog barking": ("dog",),
    "engine": ("engine",),
    "horn": ("horn",),
    "thunder": ("thunder",),
    "rain": ("rain",),
    "bird chirping": ("bird",),
    "door closing": ("door",),
    "footsteps": ("footsteps", "footstep"),
    "scream": ("scream",),
    "water": ("water",),
    "wolf howling": ("wolf",),
    "horse": ("horse",),
    "sheep": ("sheep",),
    "wind": ("wind",),
    "explosion": ("explosion",),
    "helicopter": ("helicopter",),
    "chicken": ("chicken",),
    "glass breaking": ("glass",),
}
PARTNERS = 6  # kinds to exclude, for each kind
MIXTURES = 4  # per pair
LONGEST = 160_000  # samples, of a sound in a mixture
Rule = Callable[[dict[str, np.ndarray]], np.ndarray]  # similarities and scores of N clips → which are excluded


def rules() -> dict[str, Rule]:
    """The rules. q, w: similarities to the query and the unwanted text; s: calibrated score and f: highest smoothed
    frame score of the unwanted text; g: highest smoothed frame score of the query."""

    def at_least(name: str, level: float) -> Rule:
        return lambda c: c[name] >= level

    def closer_or_at_least(level: float) -> Rule:
        return lambda c: (c["w"] >= c["q"]) | (c["f"] >= level)

    found: dict[str, Rule] = {"nothing": lambda c: np.zeros(len(c["q"]), bool), "w ≥ q": lambda c: c["w"] >= c["q"]}
    found |= {f"clip score ≥ {level}": at_least("s", level) for level in (0.2, 0.3, 0.5)}
    found |= {f"frame score ≥ {level}": at_least("f", level) for level in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)}
    found |= {f"w ≥ q, or frame score ≥ {level}": closer_or_at_least(level) for level in (0.5, 0.6, 0.7)}
    found["frame score ≥ the query's"] = lambda c: c["f"] >= np.maximum(0.2, c["g"])
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--checkpoint", default="checkpoints/finelap-small")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    model = FineLAP.from_pretrained(options.checkpoint)
    table = compare(model, *read_sounds(options.sounds))
    columns = ("AP", "wanted out", "mixtures out", "unwanted out", "mixtures in 20", "unwanted in 10")
    print("| left out | " + " | ".join(columns) + " |")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in row) + " |")
    if options.out:
        options.out.write_text(json.dumps({"columns": columns, "rules": table}, ensure_ascii=False, indent=1) + "\n")


def read_sounds(folder: Path) -> tuple[list[np.ndarray], list[set[str]]]:
    """Reads samples (n,) at 16 kHz and the words of the label of every sound of at least 60 ms in the manifest."""
    sounds, words = [], []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        about = json.loads(line)
        if about["duration_s"] < 0.06:
            continue
        path = folder / about["audio"]
        sounds.append(decode(path.read_bytes(), path.name).samples)
        words.append(set(about["label"].split()))
    return sounds, words


def compare(model: FineLAP, sounds: list[np.ndarray], words: list[set[str]]) -> dict[str, list[float]]:
    """Rule → AP of wanted sounds, shares of wanted, mixed and unwanted sounds excluded, unwanted among the best."""
    kinds = list(KINDS)
    members = [np.flatnonzero([not found.isdisjoint(KINDS[kind]) for found in words]) for kind in kinds]
    texts = model.encode_text(kinds).numpy()
    clips, peaks = embed(model, sounds, texts)
    rng = np.random.default_rng(0)
    rows: dict[str, list[list[float]]] = {name: [] for name in rules()}
    for a in range(len(kinds)):
        for b in rng.permutation(np.delete(np.arange(len(kinds)), a))[:PARTNERS]:
            one, two = np.setdiff1d(members[a], members[b]), np.setdiff1d(members[b], members[a])
            mixed = [mix(sounds[rng.choice(one)], sounds[rng.choice(two)], rng) for _ in range(MIXTURES)]
            more_clips, more_peaks = embed(model, mixed, texts)
            every, frames = np.concatenate([clips, more_clips]), np.concatenate([peaks, more_peaks])
            seen = {"q": every @ texts[a], "w": every @ texts[b], "g": frames[:, a], "f": frames[:, b]}
            seen["s"] = model.clip_score(every, texts[b]).numpy()[:, 0]
            for name, rule in rules().items():
                rows[name].append(judge(seen["q"], rule(seen), one, np.arange(len(clips), len(every)), two))
    return {name: np.mean(values, axis=0).round(4).tolist() for name, values in rows.items()}


def embed(model: FineLAP, sounds: list[np.ndarray], texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip embeddings (N, D), and the highest smoothed frame score of each text (N, P)."""
    clips, peaks = [], []
    for sound in sounds:
        (embedded,) = model.encode_audio([sound], 16_000)
        scores = median_smooth(model.frame_score(embedded.frames, texts).numpy(), 0.48, embedded.frame_hop)
        clips.append(embedded.clip.numpy())
        peaks.append(scores.max(axis=1))
    return np.stack(clips), np.stack(peaks)


def mix(one: np.ndarray, two: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mixes two sounds; the second starts before the first ends if possible."""
    one, two = one[:LONGEST], two[:LONGEST]
    loudness = [max(1e-4, float(np.sqrt(np.mean(sound**2)))) for sound in (one, two)]
    gain = loudness[0] / loudness[1] * 10 ** (rng.uniform(-5, 5) / 20)
    out = np.zeros(max(len(one), len(two)) + min(len(one), len(two)) // 2, np.float32)
    out[: len(one)] += one
    out[-len(two) :] += (gain * two).astype(np.float32)
    return out


def judge(
    similarity: np.ndarray, left_out: np.ndarray, wanted: np.ndarray, mixed: np.ndarray, unwanted: np.ndarray
) -> list[float]:
    """A row of the table for one pair. Excluded clips rank last."""
    order = np.argsort(-(similarity - 9 * left_out))
    ranks = np.flatnonzero(np.isin(order, wanted)) + 1
    kept = order[~left_out[order]]
    return [
        float(np.mean(np.arange(1, len(ranks) + 1) / ranks)),
        float(left_out[wanted].mean()),
        float(left_out[mixed].mean()),
        float(left_out[unwanted].mean()),
        float(np.isin(mixed, kept[:20]).mean()),
        float(np.isin(kept[:10], np.concatenate([mixed, unwanted])).sum() / 10),
    ]


if __name__ == "__main__":
    main()
