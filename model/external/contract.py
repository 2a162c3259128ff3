"""What a model of sound and text must offer, so that the service can serve it: FineLAP, or another family.

`Model` is the contract: windows of the model's own length and sample rate, an embedding for each window, frames or
none, and an embedding for each text, all in one space. FineLAP fulfils it itself; model.external has the others. A
family's module, and transformers with it, is imported only for a checkpoint that names it.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

# model_type in a Hugging Face folder's config.json → "module:class"
FAMILIES = {
    "clap": "model.external.clap:Clap",
    "pe_audio": "model.external.pe_audio:PeAudio",
}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_LICENCE = re.compile(r"^licen[cs]e:\s*['\"]?([\w.+ -]+?)['\"]?\s*$", re.MULTILINE)

Download = Callable[[str, str | None, list[str]], str]  # (hub id, revision, file patterns) → folder


@dataclass(frozen=True)
class Traits:
    """What a model is and can do."""

    family: str  # "finelap", or a key of FAMILIES
    sample_rate: int  # Hz
    window: float  # seconds that it hears at once
    frames: Literal["native", "sliding"] | None  # "sliding": from overlapping windows; None: whole clips only
    calibrated: bool  # whether scores are probabilities fitted on sounds and phrases
    licence: str | None  # as its folder's README.md says


class Model(Protocol):
    """A model as the service uses it. Embeddings are float32, unit length, in one space of D dimensions."""

    @property
    def config(self) -> Any:
        """Has `windows` (a WindowConfig), `matching` (a MatchingConfig or None) and `name`."""

    @property
    def traits(self) -> Traits: ...
    @property
    def name(self) -> str: ...
    @property
    def stamp(self) -> str:
        """Identifies the space: embeddings with equal stamps are comparable."""

    @property
    def dim(self) -> int: ...
    @property
    def frame_hop(self) -> float: ...
    @property
    def temp_global(self) -> Any: ...
    @property
    def b_global(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    def side_by_side(self, windows: int) -> int: ...
    def encode_windows(self, waveforms: Sequence[Any]) -> Sequence[tuple[Any, Any]]:
        """Waveforms (n,) at `config.windows.sample_rate`, each at most a window → clip (D,) and frames (T, D) each.

        Without frames of its own, a model repeats the clip embedding.
        """

    def encode_text(self, texts: Sequence[str]) -> Any:
        """Texts → (B, D)."""

    def clip_score(self, clip: Any, text: Any) -> Any: ...
    def frame_score(self, frames: Any, text: Any) -> Any: ...


def external_family(source: str | Path, download: Download | None = None) -> tuple[str, Path] | None:
    """The family and folder of a Hugging Face folder or hub id of FAMILIES; None for anything else.

    For a hub id, config.json is fetched first; if that fails, the answer is None, and loading it as FineLAP says why.
    """
    folder = Path(source)
    if not folder.exists():
        if not _HUB_ID.match(str(source)):
            return None
        try:
            folder = Path((download or _hub_download)(str(source), None, ["config.json"]))
        except Exception:  # the hub client raises many types
            return None
    try:
        family = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return (family, folder) if family in FAMILIES else None


def load_external(
    source: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    sliding: bool = False,
    download: Download | None = None,
) -> Model | None:
    """Loads a model of another family, or returns None if the checkpoint is not of one. Raises CheckpointError.

    `sliding` makes frames for a model without any, from windows of its own length that overlap.
    """
    found = external_family(source, download)
    if found is None:
        return None
    family, folder = found
    if not Path(source).exists():
        fetch = download or _hub_download
        folder = Path(fetch(str(source), None, ["*.json", "*.safetensors", "*.txt", "README.md"]))
        if not any(folder.glob("*.safetensors")):  # older uploads; transformers reads them with weights_only
            folder = Path(fetch(str(source), None, ["pytorch_model*.bin"]))
    module, _, name = FAMILIES[family].partition(":")
    model: Model = getattr(importlib.import_module(module), name)(folder, device=device, dtype=dtype, sliding=sliding)
    return model


def read_licence(folder: Path) -> str | None:
    """The licence in the front matter of a folder's README.md, as on the hub; None if it says nothing."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = _LICENCE.search(front[1]) if front else None
    return found[1] if found else None


def _hub_download(repo: str, revision: str | None, patterns: list[str]) -> str:
    from model.checkpoint import hub_download

    return hub_download(repo, revision, patterns)
