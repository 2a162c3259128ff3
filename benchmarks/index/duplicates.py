"""Measures near-duplicate detection on labelled sounds, each re-encoded in several ways, among other takes.

    python -m benchmarks.index.duplicates SOUNDS [--labels 40] [--takes 4]

SOUNDS has a manifest.jsonl with `audio`, `label` and `duration_s`. Pairs of variants of one sound should be found,
pairs of different sounds should not; most of the latter are takes with the same label and about the same duration.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr

from app.audio.decode import decode
from app.audio.peaks import WaveformPeaks
from index import FrameCodes, encode_frames, near_duplicates
from index.duplicates import TOLERANCE, TOLERANCE_SHARE, frame_similarity, peak_correlation
from model import FineLAP
from model.windows import Joiner, WindowCutter

VARIANTS = ("as it is", "mp3 64k", "mp3 128k", "ogg", "gain -6 dB", "trimmed 50 ms", "22 kHz")
CHECKPOINT = "checkpoints/finelap-small"


def variants(path: Path) -> dict[str, bytes]:
    """The original file and its re-encoded variants."""
    samples, rate = soundfile.read(path, dtype="float32")
    samples = samples if samples.ndim == 1 else samples.mean(axis=1)
    half = soxr.resample(samples, rate, 22_050)
    cut = samples[int(0.05 * rate) :]
    return {
        "as it is": path.read_bytes(),
        "mp3 64k": encoded(samples, rate, 64_000),
        "mp3 128k": encoded(samples, rate, 128_000),
        "ogg": written(samples, rate, "OGG", "VORBIS"),
        "gain -6 dB": written(samples / 2, rate, "WAV", "PCM_16"),
        "trimmed 50 ms": written(cut, rate, "WAV", "PCM_16"),
        "22 kHz": written(half, 22_050, "WAV", "PCM_16"),
    }


def written(samples: np.ndarray, rate: int, container: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def encoded(samples: np.ndarray, rate: int, bit_rate: int) -> bytes:
    """Encodes MP3 at 44.1 kHz."""
    samples = soxr.resample(samples, rate, 44_100).astype(np.float32)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3") as output:
        stream: Any = output.add_stream("libmp3lame", rate=44_100)
        stream.bit_rate, stream.layout = bit_rate, "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = 44_100
        fifo = av.AudioFifo()
        for converted in av.AudioResampler(format=stream.format.name, layout="mono", rate=44_100).resample(frame):
            fifo.write(converted)
        while (piece := fifo.read(stream.codec_context.frame_size, partial=True)) is not None:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def embedded(model: FineLAP, samples: np.ndarray) -> tuple[np.ndarray, FrameCodes]:
    """The clip vector (D,) and the quantised frames."""
    cutter, joiner = WindowCutter(model.config.windows), Joiner(model.config.windows.frame_share)
    windows = [*cutter.push(samples), *cutter.finish()]
    heard = model.encode_windows([waveform for _, waveform in windows])
    frames = [
        joiner.add(window, clip.cpu().numpy(), track.cpu().numpy())
        for (window, _), (clip, track) in zip(windows, heard, strict=True)
    ]
    return joiner.clip(), encode_frames(np.concatenate(frames))


def chosen(sounds: Path, labels: int, takes: int) -> list[tuple[str, Path]]:
    """Selects (label, file) pairs: for labels with several takes, the takes closest in duration."""
    by_label = defaultdict(list)
    for line in (sounds / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if 0.3 <= row["duration_s"] <= 10:
            by_label[row["label"]].append((row["duration_s"], row["audio"]))
    able = sorted(label for label, rows in by_label.items() if len(rows) >= takes)
    rng = np.random.default_rng(0)
    picked = sorted(rng.choice(able, size=min(labels, len(able)), replace=False))
    found = []
    for label in picked:
        rows = sorted(by_label[label])
        start = min(range(len(rows) - takes + 1), key=lambda at: rows[at + takes - 1][0] - rows[at][0])
        found += [(str(label), sounds / audio) for _, audio in rows[start : start + takes]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--takes", type=int, default=4)
    options = parser.parse_args()
    model = FineLAP.from_pretrained(CHECKPOINT)
    vectors, durations, tracks, outlines, sound_of, variant_of = [], [], [], [], [], []
    for sound, (_, path) in enumerate(chosen(options.sounds, options.labels, options.takes)):
        for variant, data in variants(path).items():
            heard = decode(data, path.name)
            vector, frames = embedded(model, heard.samples)
            vectors.append(vector)
            durations.append(heard.duration)
            tracks.append(frames)
            envelope = WaveformPeaks()
            envelope.push(heard.samples)
            outlines.append(envelope.levels())
            sound_of.append(sound)
            variant_of.append(variant)
    report(np.stack(vectors), np.array(durations), tracks, outlines, np.array(sound_of), variant_of)


def report(
    vectors: np.ndarray,
    durations: np.ndarray,
    tracks: list[FrameCodes],
    outlines: list[np.ndarray],
    sound: np.ndarray,
    variant: list[str],
) -> None:
    first, second = np.triu_indices(len(vectors), 1)
    longer = np.maximum(durations[first], durations[second])
    near = np.abs(durations[first] - durations[second]) <= TOLERANCE + TOLERANCE_SHARE * longer
    same = sound[first] == sound[second]
    cosine = np.einsum("nd,nd->n", vectors[first], vectors[second])
    close = near & (cosine >= 0.85)  # the lowest threshold of the tables
    agreement, likeness = np.full(len(first), -1.0), np.full(len(first), -1.0)
    for pair in np.flatnonzero(close):
        agreement[pair] = frame_similarity(tracks[first[pair]], tracks[second[pair]])
        likeness[pair] = peak_correlation(outlines[first[pair]], outlines[second[pair]])
    print(f"{sound.max() + 1} sounds, {len(vectors)} files, {same.sum()} pairs to find, {(near & ~same).sum()} others")
    print("| similarity | agreement | likeness | precision | recall | wrong pairs |\n|---|---|---|---|---|---|")
    for similarity, least, alike in product((0.85, 0.9, 0.95, 0.97, 0.99), (0.9, 0.95), (-1.0, 0.8, 0.9, 0.95, 0.98)):
        found = near & (cosine >= similarity) & (agreement >= least) & (likeness >= alike)
        right = (found & same).sum()
        print(
            f"| {similarity} | {least} | {alike if alike > 0 else 'not asked'} "
            f"| {100 * right / max(1, found.sum()):.1f} | {100 * right / same.sum():.1f} | {found.sum() - right} |"
        )
    groups = near_duplicates(vectors, durations, tracks.__getitem__, outlines.__getitem__)
    group_of = {clip: number for number, members in enumerate(groups) for clip in members}
    whole = sum(len({int(sound[clip]) for clip in members}) == 1 for members in groups)
    print(f"groups at the defaults: {len(groups)}, {whole} of one sound only")
    print("| variant | with its original, % | cosine, median and least |\n|---|---|---|")
    originals = {int(sound[at]): at for at in range(len(vectors)) if variant[at] == VARIANTS[0]}
    for name in VARIANTS[1:]:
        clips = [at for at in range(len(vectors)) if variant[at] == name]
        pairs = [(at, originals[int(sound[at])]) for at in clips]
        together = np.mean([group_of.get(a, -1) == group_of.get(b, -2) for a, b in pairs])
        cosines = [float(vectors[a] @ vectors[b]) for a, b in pairs]
        print(f"| {name} | {100 * together:.1f} | {np.median(cosines):.3f}, {min(cosines):.3f} |")


if __name__ == "__main__":
    main()
