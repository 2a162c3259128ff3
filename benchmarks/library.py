"""Libraries of a given size and a checkpoint that costs almost nothing, for benchmarks of everything but the model."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.common import REPO
from index import NewClip, SqliteLibrary
from index.new_clip import encode_clip
from index.quantization import encode_frames
from index.sqlite import queries
from index.sqlite.audio_files import AudioFiles
from index.sqlite.store import AUDIO_FOLDER, DATABASE_FILE, Store
from model import FineLAP
from model.config import SAMPLE_RATE

_TRANSACTION = 5000  # clips


def fill_library(folder: Path, clips: int, seconds: float = 2.5) -> float:
    """Creates a library of `clips` clips for the bundled checkpoint; returns the seconds it takes to open.

    Each clip lasts `seconds`, has a random vector and the same 16 random frames. Rows and files are written directly,
    without an fsync for each file and without the search index: about five minutes for a million clips. The first
    opening of a large library builds the index.
    """
    model = FineLAP.from_pretrained(REPO / "checkpoints" / "finelap-small")
    SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp).close()
    rng = np.random.default_rng(0)
    frames = encode_frames(_unit(rng, (16, model.dim)))
    new = NewClip("0.wav", "", seconds, SAMPLE_RATE, 1, {}, _unit(rng, (model.dim,)), frames, seconds / 16, b"")
    pattern = encode_clip(new, model.dim, datetime.now(UTC))  # once: drawing, packing and cutting frames takes longest
    audio = AudioFiles(folder / AUDIO_FOLDER)
    for byte in range(256):
        (audio.root / f"{byte:02x}").mkdir(exist_ok=True)
    store = Store(folder / DATABASE_FILE)
    store._writer.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -262144")
    try:
        for at in range(0, clips, _TRANSACTION):
            with store.write() as change:
                for number, vector in enumerate(_unit(rng, (min(_TRANSACTION, clips - at), model.dim)), at):
                    content = b"%d" % number
                    sha256 = hashlib.sha256(content).hexdigest()
                    about = {"number": number, "tags": [f"kind {number % 500}"]}
                    clip = replace(
                        pattern.clip, id=uuid.uuid4().hex, filename=f"{number}.wav", sha256=sha256, metadata=about
                    )
                    queries.insert(change, replace(pattern, clip=clip, metadata=json.dumps(about), embedding=vector))
                    audio.path(sha256).write_bytes(content)
    finally:
        store.close()
    with SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp) as library:
        library._index.wait()
    began = time.perf_counter()
    SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp).close()
    return time.perf_counter() - began


def _unit(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def save_tiny_checkpoint(folder: Path) -> Path:
    """Saves a FineLAP of random weights, 24 dimensions and one layer: windows of 2.56 s cost a millisecond."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from model.config import AdapterConfig, EncoderConfig, FineLAPConfig, MelConfig, TextConfig, WindowConfig

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "sound"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    bert = {"model_type": "bert", "vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 1}
    bert |= {"num_attention_heads": 4, "intermediate_size": 32, "max_position_embeddings": 16}
    config = FineLAPConfig(
        name="tiny",
        dim=24,
        mel=MelConfig(num_mel_bins=32),
        windows=WindowConfig(mel_frames=256, frames=16, frame_hop=0.16, overlap_frames=4, buckets=(4, 8)),
        audio_encoder=EncoderConfig("eat", {"dim": 32, "depth": 1, "heads": 4, "mlp_ratio": 1.0, "patch": 16}),
        adapter=AdapterConfig("decoupled", {"layers": 1, "heads": 4, "hidden": 32}),
        text=TextConfig(pooling="mean", max_tokens=8, projector="mlp", params={"hidden": 32}, hf_config=bert),
    )
    torch.manual_seed(0)
    FineLAP(config, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)).save_pretrained(folder)
    return folder
