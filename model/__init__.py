"""The FineLAP model: waveforms and texts to one embedding space. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.finelap import AudioEmbedding, FineLAP
    from model.weight_files import CheckpointError

__all__ = ["AudioEmbedding", "CheckpointError", "FineLAP"]

_HOMES = {
    "AudioEmbedding": "model.finelap",
    "CheckpointError": "model.weight_files",
    "FineLAP": "model.finelap",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
