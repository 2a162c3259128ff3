"""Packed linear layers: the same results as PyTorch's, where they are used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from app.inference.engine import load_model
from app.settings import Settings
from model import FineLAP
from model.cpu import layers
from model.cpu.bfloat16 import agree, bfloat16_is_sound
from model.cpu.layers import PackedLinear, onednn_is_faster, use_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")

SOUNDS = [np.random.default_rng(n).normal(0, 0.1, size).astype(np.float32) for n, size in enumerate((32_000, 160_000))]
TEXTS = ["a dog barks", "rain on a roof, and thunder in the distance"]


@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (3, 5, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_equals_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40, bias=bias), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear(layer.weight, layer.bias)(x), layer(x), atol=1e-5, rtol=1e-5)
        across = torch.randn(24, 6).T  # not contiguous
        torch.testing.assert_close(PackedLinear(layer.weight, layer.bias)(across), layer(across), atol=1e-5, rtol=1e-5)


def test_the_bundled_checkpoint_has_the_same_embeddings(small_checkpoint: Path) -> None:
    plain = FineLAP.from_pretrained(small_checkpoint)
    packed = use_onednn(FineLAP.from_pretrained(small_checkpoint), faster=True)
    assert packed.stamp == plain.stamp
    assert sum(isinstance(part, PackedLinear) for part in packed.modules()) > 40
    for ours, expected in zip(packed.encode_windows(SOUNDS), plain.encode_windows(SOUNDS), strict=True):
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.encode_text(TEXTS), plain.encode_text(TEXTS), atol=1e-5, rtol=0)


def test_transformers_of_pytorch_keep_their_own_layers(tiny: FineLAP) -> None:
    plain = copy.deepcopy(tiny)
    packed = use_onednn(copy.deepcopy(tiny), faster=True)
    assert any(isinstance(part, nn.TransformerEncoderLayer) for part in packed.modules())
    for ours, expected in zip(packed.encode_windows(SOUNDS[:1]), plain.encode_windows(SOUNDS[:1]), strict=True):
        torch.testing.assert_close(ours[1], expected[1], atol=1e-5, rtol=0)


@pytest.mark.skipif(not bfloat16_is_sound(), reason="no bfloat16 on this processor")
def test_a_model_in_bfloat16_has_the_same_embeddings(small_checkpoint: Path) -> None:
    plain = FineLAP.from_pretrained(small_checkpoint, dtype=torch.bfloat16)
    packed = use_onednn(FineLAP.from_pretrained(small_checkpoint, dtype=torch.bfloat16), faster=True)
    assert sum(isinstance(part, PackedLinear) for part in packed.modules()) > 40
    for ours, expected in zip(packed.encode_windows(SOUNDS), plain.encode_windows(SOUNDS), strict=True):
        assert agree(ours, expected)
    assert agree([packed.encode_text(TEXTS)], [plain.encode_text(TEXTS)])


def test_other_dtypes_are_left_as_they_are(make_tiny: Callable[..., FineLAP]) -> None:
    model = use_onednn(make_tiny().cast(torch.float64), faster=True)
    assert not any(isinstance(part, PackedLinear) for part in model.modules())


@pytest.mark.parametrize(
    ("vendor", "flags", "float32", "bfloat16"),
    [
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", True, False),
        ("AuthenticAMD", "avx2", False, False),
        ("GenuineIntel", "avx512f", False, False),
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16", False, True),
    ],
)
def test_it_depends_on_the_processor(tmp_path: Path, vendor: str, flags: str, float32: bool, bfloat16: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n")
    assert onednn_is_faster(torch.float32, file) is float32
    assert onednn_is_faster(torch.bfloat16, file) is bfloat16
    assert not onednn_is_faster(torch.float32, tmp_path / "none")


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("faster", [True, False])
def test_the_service_packs_where_it_is_faster(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, faster: bool
) -> None:
    monkeypatch.setattr(layers, "onednn_is_faster", lambda dtype: faster)
    model = load_model(Settings(checkpoint=str(small_checkpoint), device="cpu", dtype=dtype))
    assert isinstance(model, FineLAP)
    assert any(isinstance(part, PackedLinear) for part in model.modules()) is faster
