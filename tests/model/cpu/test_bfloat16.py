"""bfloat16 on a CPU: used where it is fast and sound, declined where it crashes or changes the embeddings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from model.cpu import bfloat16
from model.cpu.bfloat16 import agree, bfloat16_is_fast, trial_passes, use_bfloat16
from model.encoders.cnn import ConvEncoder
from model.finelap import FineLAP

INTEL, AMD = "GenuineIntel", "AuthenticAMD"


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        (INTEL, "fma avx512f avx512_bf16 amx_bf16 amx_tile", True),
        (INTEL, "fma avx512f avx512_bf16", False),
        (AMD, "fma avx512f avx512_bf16", True),
        (AMD, "fma avx2", False),
    ],
)
def test_fast_processors_are_recognised(tmp_path: Path, vendor: str, flags: str, fast: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: X\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    assert bfloat16_is_fast(file) is fast


def test_without_cpuinfo_bfloat16_is_not_fast(tmp_path: Path) -> None:
    assert not bfloat16_is_fast(tmp_path / "none")


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        ("pass", True),
        ("raise SystemExit(1)", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", False),
        ("import time; time.sleep(3)", True),  # on a busy machine a trial mostly waits
        ("while True: pass", False),
    ],
)
def test_a_trial_passes_if_it_exits_with_zero_in_its_processor_time(code: str, passes: bool) -> None:
    assert trial_passes([sys.executable, "-S", "-c", code], 1) is passes


def test_a_trial_that_hangs_fails() -> None:
    assert not trial_passes([sys.executable, "-S", "-c", "import time; time.sleep(60)"], timeout=1.0)


def test_a_trial_that_cannot_start_fails(tmp_path: Path) -> None:
    assert not trial_passes([str(tmp_path / "missing")])


def test_the_real_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process only if the processor is sound; elsewhere it could kill the test run."""
    if not bfloat16.bfloat16_is_sound():
        pytest.skip("this processor has no fast bfloat16")
    assert bfloat16._trial() == 0
    monkeypatch.setattr(bfloat16, "_TOLERANCE", 1e-6)
    assert bfloat16._trial() == 1


def test_agreement_requires_every_part() -> None:
    a = torch.nn.functional.normalize(torch.randn(5, 64), dim=-1)
    near = torch.nn.functional.normalize(a + 0.001 * torch.randn(5, 64), dim=-1)
    assert agree([a, a[0]], [near, near[0]])
    assert not agree([a, a[0]], [near, -a[0]])
    assert not agree([a * torch.nan], [a])


def test_bfloat16_is_used_if_sound(tiny: FineLAP) -> None:
    stamp = tiny.stamp
    assert tiny.audio_encoder.likes_bfloat16
    assert use_bfloat16(tiny, lambda: False) is tiny
    rounded = use_bfloat16(tiny, lambda: True)
    assert rounded.dtype == torch.bfloat16 and tiny.dtype == torch.float32
    assert rounded.tokenizer is tiny.tokenizer and tiny.stamp == stamp


def test_a_model_whose_embeddings_change_stays_float32(tiny: FineLAP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "agree", lambda *_: False)
    assert use_bfloat16(tiny, lambda: True) is tiny


def test_the_bundled_encoder_stays_float32() -> None:
    assert not ConvEncoder.likes_bfloat16  # existing libraries store its embeddings
