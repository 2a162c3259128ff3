"""The GPU benchmark, run on a CPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from benchmarks.model import gpu
from tests.benchmarks.model.test_throughput import small_of_the_same_kind


def test_every_path_is_measured_and_shown() -> None:
    model = small_of_the_same_kind()
    found: dict[str, Any] = gpu.measure(model, 1e12, [1, 2], 1)
    assert [(row["batch"], row["way"]) for row in found["windows"]] == [
        (batch, way) for batch in (1, 2) for way in ("on the device", "from waveforms")
    ]
    for row in found["windows"]:
        assert row["share"] == pytest.approx(row["per_second"] * found["operations"] / 1e12)
    flac = gpu.from_flac(model, 2, 0.2)
    assert flac is not None and flac["decoding"] > flac["end to end"] > 0
    about = {"device": "CPU", "dtype": "float32", "cores": 2, "from FLAC": flac}
    assert len(gpu.show({**about, **found}).splitlines()) == 10


def test_a_ceiling_is_a_rate() -> None:
    assert 1e8 < gpu.ceiling(torch.device("cpu"), torch.float32, 1) < 1e14


def test_it_imports_only_pytorch_and_numpy() -> None:
    code = "import sys, benchmarks.model.gpu; print(sorted({m.split('.')[0] for m in sys.modules}))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'torch'" in output
    assert not [name for name in ("httpx", "soundfile", "soxr", "transformers", "safetensors") if f"'{name}'" in output]
