"""Temporal attention: frames take from neighbours within reach, and activity raises all phrases alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model import FineLAP
from model.adapter import DILATIONS, TemporalAttention
from model.config import AdapterConfig, ConfigError, EvidenceConfig, TemporalConfig
from model.cpu.bfloat16 import agree
from tests.model.conftest import build_config, build_tokenizer, fill

FEATURES, JOINT, CORE, STEPS, REACH = 6, 10, 4, 40, 3


def attention(seed: int = 0) -> TemporalAttention:
    torch.manual_seed(seed)
    made = TemporalAttention(TemporalConfig(width=8, reach=REACH, activity_weight=2.0), FEATURES).eval()
    torch.nn.init.normal_(made.activity.weight, std=0.1)
    return made


def random_frames() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, STEPS, FEATURES), F.normalize(torch.randn(2, STEPS, JOINT), dim=-1)


def test_frames_are_of_unit_length_and_their_neighbours_mean() -> None:
    made, (frames, embeddings) = attention(), random_frames()
    found = made(frames, embeddings)
    assert found.shape == (2, STEPS, JOINT + 1)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, STEPS))
    constant = embeddings[:, :1].expand(-1, STEPS, -1)
    same = F.normalize(made(frames, constant)[..., :-1], dim=-1)
    torch.testing.assert_close(same, constant, msg="a mean of equal embeddings is that embedding")


def test_what_is_out_of_reach_changes_nothing() -> None:
    made, (frames, embeddings) = attention(), random_frames()
    before, at = made(frames, embeddings), 20
    other = embeddings.clone()
    other[:, at] = -other[:, at]
    changed = ((made(frames, other) - before).abs().amax(-1) > 1e-6)[0]
    assert changed.nonzero().flatten().tolist() == list(range(at - REACH, at + REACH + 1))
    louder = frames.clone()
    louder[:, at] = 5 * torch.randn(2, FEATURES)
    seen = ((made(louder, embeddings) - before).abs().amax(-1) > 1e-6)[0].nonzero().flatten()
    # a frame's own query and its neighbours' keys have seen as far as the convolutions do
    assert at in seen and (seen - at).abs().max() <= REACH + sum(DILATIONS)


def test_activity_raises_every_phrase_by_as_much_and_clips_have_none() -> None:
    made, (frames, embeddings) = attention(), random_frames()
    # every text's core is as long as that of any other
    core = 0.5 * F.normalize(torch.randn(7, CORE), dim=-1)
    rest = 0.75**0.5 * F.normalize(torch.randn(7, JOINT - CORE), dim=-1)
    plain = torch.cat([core, rest], dim=-1)
    texts = made.extend_text(plain, CORE)
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(7))
    clips = F.normalize(torch.randn(5, JOINT), dim=-1)
    torch.testing.assert_close(made.extend_clip(clips) @ texts.T, clips @ plain.T / (1 + (2.0 * 0.5) ** 2) ** 0.5)
    torch.nn.init.zeros_(made.activity.weight)
    embeddings = embeddings[:, :1].expand(-1, STEPS, -1)
    quiet = made(frames, embeddings) @ texts.T
    with torch.no_grad():
        made.activity.bias += 0.01
    raised = made(frames, embeddings) @ texts.T - quiet
    assert (raised > 0).all() and (raised.std(-1) / raised.mean(-1)).max() < 0.1


def test_a_model_with_temporal_attention_round_trips(tmp_path: object) -> None:
    config = build_config(adapter=AdapterConfig("concept", {"concepts": 5, "hidden": 8, "direct": True}))
    core, evidence = config.dim, EvidenceConfig(rank=3, text_weight=5.0, labels=6)
    config = replace(
        config, dim=core + evidence.dims + 1, evidence=evidence, temporal=TemporalConfig(width=8, reach=REACH)
    )
    model = FineLAP(config, build_tokenizer())
    fill(model)
    model.eval().save_pretrained(str(tmp_path))
    loaded = FineLAP.from_pretrained(str(tmp_path))
    assert loaded.config == config and config.core_dim == core and loaded.stamp == model.stamp
    sound = torch.randn(30_000).mul(0.1).numpy()
    (before,), (after,) = model.encode_audio([sound], 16_000), loaded.encode_audio([sound], 16_000)
    torch.testing.assert_close(after.frames, before.frames)
    torch.testing.assert_close(after.frames.norm(dim=-1), torch.ones(len(after.frames)))
    assert loaded.encode_text(["a dog"]).shape == (1, len(after.clip)) == (1, config.dim)
    assert "temporal" not in replace(config, temporal=None).to_dict(), "older checkpoints keep their stamp"


def test_the_bundled_model_runs_in_bfloat16(repo_dir: Path) -> None:
    sound = torch.randn(40_000, generator=torch.Generator().manual_seed(0)).mul(0.1).numpy()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = FineLAP.from_pretrained(repo_dir / "checkpoints" / "finelap-small", dtype=dtype)
        (embedding,) = model.encode_audio([sound], 16_000)
        found.append([embedding.clip[None], embedding.frames, model.encode_text(["a dog barks"])])
    assert agree(*found, least=0.995)


def test_temporal_attention_needs_evidence() -> None:
    with pytest.raises(ConfigError, match="temporal attention needs evidence"):
        FineLAP(replace(build_config(), dim=build_config().dim + 1, temporal=TemporalConfig()), None)
    with pytest.raises(ConfigError, match="temporal: want width"):
        TemporalConfig(reach=0)
