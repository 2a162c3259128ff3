"""Measures log-mel windows per second: the batched front end, and the usual plain loop in NumPy.

    python -m benchmarks.model.log_mel [--runs 5] [--json FILE]

The baseline is `transformers.audio_utils.spectrogram` with the same settings (Kaldi's 128 mel bins, 25 ms windows every
10 ms), one recording of 10 s at a time. Both alternate. Also reports the largest difference of the log-mels where there
is sound, the operations and bytes of a window, and the rate of matrix products in the same run.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from benchmarks.model import ceilings, sizes
from benchmarks.model.throughput import in_turns, sounds
from model import FineLAP
from model.audio import FFT_SIZE, LOG_FLOOR, MEL_HOP, MEL_WINDOW, PREEMPHASIS, mel_filters, mel_frames_in

_SECONDS = 10.0
_BATCHES = (1, 4, 16)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    model, limits = sizes.build(sizes.SMALL), ceilings.measure()
    report: dict[str, Any] = {"machine": common.machine(), "code": common.revision(common.REPO), **compare(model)}
    operations, moved = report["operations"], report["bytes"]
    rows: list[list[object]] = []
    for batch in _BATCHES:
        waveforms = sounds(_SECONDS, batch)
        work = {"ours": partial(ours, model, waveforms), "transformers": partial(loop, model, waveforms)}
        mine, theirs = (batch / seconds for seconds in in_turns(work, options.runs).values())
        share = mine * operations / limits.of("float32")
        report[f"batch {batch}"] = {"ours": mine, "transformers": theirs, "ratio": mine / theirs, "share": share}
        rows.append([batch, mine, theirs, f"{mine / theirs:.1f}", f"{100 * share:.0f} %"])
    print(common.table(["batch", "windows/s", "transformers", "ratio", "of the matrix rate"], rows))
    print(f"a window: {operations / 1e6:.0f} million operations, {moved / 1e6:.1f} MB in and out")
    print(f"matrix products {limits.of('float32') / 1e9:.0f} GFLOP/s; largest difference {report['same']:.1e}")
    common.write_json(options.json, report)
    return 0


def compare(model: FineLAP) -> dict[str, float]:
    """The cost of a window, and the largest difference between the two implementations."""
    (sound,) = sounds(_SECONDS, 1)
    frames = mel_frames_in(len(sound))
    mine, other = ours(model, [sound])[0, :frames], baseline(model, sound)
    audible = other > np.log(LOG_FLOOR) + 5
    operations = 2 * frames * (MEL_WINDOW * FFT_SIZE + FFT_SIZE // 2 * mine.shape[1])
    return {
        "same": float(np.abs(mine - other)[audible].max()),
        "operations": operations,
        "bytes": sound.nbytes + mine.nbytes,
    }


def ours(model: FineLAP, waveforms: list[np.ndarray]) -> np.ndarray:
    """Our raw log-mel (B, frames, bins)."""
    with torch.no_grad():
        return np.asarray(model.log_mel(torch.from_numpy(np.stack(waveforms))))


def loop(model: FineLAP, waveforms: list[np.ndarray]) -> list[np.ndarray]:
    """The baseline, one recording at a time."""
    return [baseline(model, waveform) for waveform in waveforms]


def baseline(model: FineLAP, waveform: np.ndarray) -> np.ndarray:
    """The raw log-mel (frames, bins) of transformers."""
    from transformers.audio_utils import spectrogram

    mel = model.config.mel
    return np.asarray(
        spectrogram(
            waveform,
            np.hanning(MEL_WINDOW),
            frame_length=MEL_WINDOW,
            hop_length=MEL_HOP,
            fft_length=FFT_SIZE,
            power=2.0,
            center=False,
            preemphasis=PREEMPHASIS,
            mel_filters=mel_filters(mel.num_mel_bins, mel.low_freq).numpy(),
            log_mel="log",
            mel_floor=LOG_FLOOR,
            remove_dc_offset=True,
        ).T
    )


if __name__ == "__main__":
    sys.exit(main())
