"""Converts a published checkpoint to our folder, and reports what became of every tensor: `finelap convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import Download, find_tokenizer, hub_download, read_checkpoint
from model.finelap import FineLAP


@dataclass(frozen=True)
class ConversionReport:
    """The result of `convert`, tensor by tensor."""

    source: str
    folder: Path
    name: str
    tensors: int  # in the source
    used: int  # written, under our names
    computed: tuple[str, ...]  # fixed tables equal to what the model computes; not written
    ignored: tuple[str, ...]  # known to have no part in the forward pass
    parameters: int  # numbers in the written tensors
    tokenizer: str | None  # where it was found; None: the result cannot encode texts
    stamp: str


def convert(
    src: str | Path,
    out: str | Path,
    tokenizer: str | Path | None = None,
    *,
    revision: str | None = None,
    download: Download | None = None,
) -> ConversionReport:
    """Reads any source that `FineLAP.from_pretrained` reads and writes our folder `out`. Raises CheckpointError."""
    content = read_checkpoint(src, revision=revision, download=download or hub_download)
    model = FineLAP.from_checkpoint(content)
    found, origin = find_tokenizer(content, tokenizer, download or hub_download)
    if found is not None:
        model.set_tokenizer(found)
    model.save_pretrained(out)
    return ConversionReport(
        source=str(src),
        folder=Path(out),
        name=model.name,
        tensors=content.tensors,
        used=len(content.state),
        computed=content.computed,
        ignored=content.ignored,
        parameters=sum(t.numel() for t in content.state.values()),
        tokenizer=origin,
        stamp=model.stamp,
    )
