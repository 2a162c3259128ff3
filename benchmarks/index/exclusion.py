"""Compares rules that exclude clips from a search for one sound without another, on labelled sounds and mixtures.

For pairs of kinds (a, b), "a without b" is searched in a library of all sounds plus overlapping mixtures of a and b,
with b at −5 to +5 dB of a. Sounds of a are wanted; mixtures and sounds of b are unwanted. The rules use what the
service has, clip and frame embeddings, but not the words of file names; the last rule is that of the service. SOUNDS is
a folder of labelled sounds, as filled by `python -m training.recipes.fetch_sounds`; --quick takes 14 short sounds of
each kind:

    python -m benchmarks.index.exclusion ../shared/sfx --quick --out without.json

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
from app.services.search import EXCLUSION
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
PARTNERS = 6  # kinds to exclude, for each kind; half of them with --quick
MIXTURES = 4  # per pair; half of them with --quick
QUICK = 14  # sounds of a kind
QUICK_SECONDS = 6.0  # of a sound
LONGEST = 160_000  # samples, of a sound in a mixture
Rule = Callable[[dict[str, np.ndarray]], np.ndarray]  # similarities and scores of N clips → which are excluded


def rules() -> dict[str, Rule]:
    """The rules. q, w: similarities to the query and the unwanted text; s: calibrated score of the unwanted text and m:
    its logit minus the query's; f: highest smoothed frame score of the unwanted text; e0, e1: the same of the frames in
    which its logit exceeds the query's by 0 and 1, so that it explains them better."""

    def at_least(name: str, level: float) -> Rule:
        return lambda c: c[name] >= level

    def closer_or_at_least(level: float) -> Rule:
        return lambda c: (c["w"] >= c["q"]) | (c["f"] >= level)

    def explains_better(margin: int, level: float, score: float) -> Rule:
        return lambda c: (c[f"e{margin}"] >= level) | ((c["s"] >= score) & (c["m"] >= margin))

    found: dict[str, Rule] = {"nothing": lambda c: np.zeros(len(c["q"]), bool), "w ≥ q": lambda c: c["w"] >= c["q"]}
    found |= {f"clip score ≥ {level}": at_least("s", level) for level in (0.2, 0.3, 0.5)}
    found |= {f"frame score ≥ {level}": at_least("f", level) for level in (0.5, 0.6, 0.7)}
    found |= {f"w ≥ q, or frame score ≥ {level}": closer_or_at_least(level) for level in (0.5, 0.6, 0.7)}
    for margin, level, score in ((0, 0.6, 0.2), (0, 0.5, 0.1), (1, 0.6, 0.1), (1, 0.5, 0.2), (1, 0.5, 0.1)):
        name = f"frame ≥ {level}, or clip ≥ {score}, and {margin} above the query's logit"
        found[name] = explains_better(margin, level, score)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--checkpoint", default="checkpoints/finelap-small")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    model = FineLAP.from_pretrained(options.checkpoint)
    table = compare(model, *read_sounds(options.sounds, options.quick), quick=options.quick)
    columns = ("AP", "wanted out", "mixtures out", "unwanted out", "mixtures in 20", "unwanted in 10")
    print("| left out | " + " | ".join(columns) + " |")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in row) + " |")
    if options.out:
        options.out.write_text(json.dumps({"columns": columns, "rules": table}, ensure_ascii=False, indent=1) + "\n")


def read_sounds(folder: Path, quick: bool = False) -> tuple[list[np.ndarray], list[set[str]]]:
    """Reads samples (n,) at 16 kHz and the words of the label of every sound of at least 60 ms in the manifest."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    manifest = [about for about in map(json.loads, lines) if about["duration_s"] >= 0.06]
    if quick:
        short = [about for about in manifest if about["duration_s"] < QUICK_SECONDS]
        chosen: dict[str, dict] = {}
        for kind in KINDS.values():
            own = [about for about in short if not set(kind).isdisjoint(about["label"].split())]
            order = np.random.default_rng(0).permutation(len(own))[:QUICK]
            chosen |= {own[number]["audio"]: own[number] for number in order}
        manifest = list(chosen.values())
    sounds, words = [], []
    for about in manifest:
        path = folder / about["audio"]
        sounds.append(decode(path.read_bytes(), path.name).samples)
        words.append(set(about["label"].split()))
    return sounds, words


def compare(
    model: FineLAP, sounds: list[np.ndarray], words: list[set[str]], *, quick: bool = False
) -> dict[str, list[float]]:
    """Rule → AP of wanted sounds, shares of wanted, mixed and unwanted sounds excluded, unwanted among the best."""
    kinds = list(KINDS)
    members = [np.flatnonzero([not found.isdisjoint(KINDS[kind]) for found in words]) for kind in kinds]
    texts = model.encode_text(kinds).numpy()
    clips, tracks = embed(model, sounds, texts)
    rng = np.random.default_rng(0)
    rows: dict[str, list[list[float]]] = {name: [] for name in rules()}
    for a in range(len(kinds)):
        for b in rng.permutation(np.delete(np.arange(len(kinds)), a))[: PARTNERS // (1 + quick)]:
            one, two = np.setdiff1d(members[a], members[b]), np.setdiff1d(members[b], members[a])
            mixed = [mix(sounds[rng.choice(one)], sounds[rng.choice(two)], rng) for _ in range(MIXTURES // (1 + quick))]
            more_clips, more_tracks = embed(model, mixed, texts)
            every, frames = np.concatenate([clips, more_clips]), tracks + more_tracks
            seen = {"q": every @ texts[a], "w": every @ texts[b]}
            seen["s"] = model.clip_score(every, texts[b]).numpy()[:, 0]
            seen["m"] = (seen["w"] - seen["q"]) / model.temp_global.item()
            seen["f"] = np.array([own[b].max() for own in frames])
            for margin in (0, 1):
                above = [logit(own[b]) >= logit(own[a]) + margin for own in frames]
                better = [np.where(mask, own[b], 0).max() for mask, own in zip(above, frames, strict=True)]
                seen[f"e{margin}"] = np.array(better)
            for name, rule in rules().items():
                rows[name].append(judge(seen["q"], rule(seen), one, np.arange(len(clips), len(every)), two))
    return {name: np.mean(values, axis=0).round(4).tolist() for name, values in rows.items()}


def logit(scores: np.ndarray) -> np.ndarray:
    """The logits of scores, up to ±14."""
    return np.log(np.clip(scores, 1e-6, 1) / np.clip(1 - scores, 1e-6, 1))


def embed(model: FineLAP, sounds: list[np.ndarray], texts: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Clip embeddings (N, D), and for each sound the smoothed frame scores of the texts (P, T)."""
    clips, tracks = [], []
    for sound in sounds:
        (embedded,) = model.encode_audio([sound], 16_000)
        scores = model.frame_score(embedded.frames, texts).numpy()
        clips.append(embedded.clip.numpy())
        tracks.append(median_smooth(scores, EXCLUSION.median, embedded.frame_hop))
    return np.stack(clips), tracks


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
