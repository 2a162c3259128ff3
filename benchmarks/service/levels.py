"""How the embedding of a sound changes when it is quieter, for docs/development/benchmarks.md.

    python -m benchmarks.service.levels [--sounds 40]

Embeds demo sounds as they are and turned down, as floats and as 16-bit integers, and prints the cosine to the original
and how often the original's own label is still the best of all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr

from benchmarks.common import SOUNDS
from model.config import SAMPLE_RATE
from model.finelap import FineLAP

LEVELS = (0, -20, -40, -50, -60, -70)  # dB
_FULL = 2**15


def measure(
    model: FineLAP, sounds: Sequence[np.ndarray], texts: np.ndarray, integers: bool
) -> list[tuple[float, float]]:
    """For each level: the mean cosine to the original, and the share whose nearest text stays the same."""

    def embed(gain: float) -> np.ndarray:
        quiet = [samples * gain for samples in sounds]
        if integers:
            quiet = [np.round(samples * _FULL) / _FULL for samples in quiet]
        clips = model.encode_audio([samples.astype(np.float32) for samples in quiet], SAMPLE_RATE)
        return np.stack([np.asarray(item.clip) for item in clips])

    originals = embed(1.0)
    nearest = (originals @ texts.T).argmax(axis=1)
    found = []
    for level in LEVELS:
        quiet = embed(10 ** (level / 20))
        same = ((quiet @ texts.T).argmax(axis=1) == nearest).mean()
        found.append((float((quiet * originals).sum(axis=1).mean()), float(same)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sounds", type=int, default=40, metavar="N")
    options = parser.parse_args()
    model = FineLAP.from_pretrained(SOUNDS.parent.parent / "checkpoints" / "finelap-small")
    files = sorted(SOUNDS.glob("*.ogg"))[:: max(1, len(list(SOUNDS.glob("*.ogg"))) // options.sounds)][: options.sounds]
    sounds = []
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        mono = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)[: 10 * SAMPLE_RATE]
        sounds.append(mono / np.abs(mono).max())  # at full scale
    names = sorted({file.stem.rpartition("-")[0].replace("-", " ") for file in files})
    texts = np.asarray(model.encode_text(names))
    print("| level | cosine, float | same label | cosine, 16-bit | same label |\n|---|---|---|---|---|")
    rows = zip(LEVELS, measure(model, sounds, texts, False), measure(model, sounds, texts, True), strict=True)
    for level, (cosine, same), (coarse, coarse_same) in rows:
        print(f"| {level} dBFS | {cosine:.3f} | {same:.0%} | {coarse:.3f} | {coarse_same:.0%} |")


if __name__ == "__main__":
    main()
