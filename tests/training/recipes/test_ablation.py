"""Each ablation row changes only the setting in its name, and is trained and measured once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from app.cli.main import main
from model.config import ConfigError
from model.finelap import FineLAP
from training.data.phrase_bank import PhraseBank
from training.recipes.ablation import CHANCE, COLUMNS, ROWS, Ablation, merged, read_ablation, table


@pytest.fixture
def bundled(repo_dir: Path, tmp_path: Path) -> Ablation:
    """The bundled ablation with a work folder of its own."""
    config = read_ablation(repo_dir / "training/configs/ablation.yaml")
    return Ablation(replace(config, work_dir=str(tmp_path / "work")), repo_dir)


def flat(value: object, at: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{at}.{key}").items()} or {at: {}}
    return {at: value}


def test_each_row_changes_only_what_its_name_states(bundled: Ablation) -> None:
    from dataclasses import asdict

    full = flat(asdict(bundled.row_config("full")))
    changed = {}
    for row in ROWS:
        found = flat(asdict(bundled.row_config(row)))
        changed[row] = {k for k in full.keys() | found.keys() if full.get(k) != found.get(k)} - {".work_dir", ".name"}
    assert changed["full"] == set()
    assert changed["no_frame_loss"] == {".loss.frame_weight"} and changed["no_clip_loss"] == {".loss.clip_weight"}
    assert changed["infonce"] == {".loss.clip"} and changed["no_synthetic"] == {".data.sets"}
    for n in (10, 15, 25, 30):
        assert changed[f"n{n}"] == {".data.phrases"} and bundled.row_config(f"n{n}").data.phrases == n
    for row in ("unified", "bigru", "linear"):
        assert changed[row] and all(k.startswith(".init.model.adapter") for k in changed[row])
    assert changed["htsat"] and all(k.startswith(".init.model.audio_encoder") for k in changed["htsat"])
    sets = [[s.simulate for s in bundled.row_config(row).data.sets] for row in ("full", "no_synthetic")]
    assert sets == [[False, True], [False]]
    assert bundled.row_config("full").data.phrases == 20


def test_every_row_can_be_built(bundled: Ablation) -> None:
    from model.adapter import build_adapter
    from model.config import FineLAPConfig
    from model.encoders.registry import build_encoder

    for row in ROWS:
        model = bundled.row_config(row).init.model
        config = FineLAPConfig.from_dict(model)
        encoder = build_encoder(config.audio_encoder, config.windows, config.mel)
        build_adapter(config.adapter, encoder.width, config.dim)


def test_steps_and_unknown_rows(bundled: Ablation) -> None:
    assert Ablation(bundled.config, bundled.root, steps=7).row_config("full").steps == 7
    with pytest.raises(ConfigError, match="unknown rows fulll; known: full, no_frame_loss"):
        bundled.run(["fulll"])
    assert merged({"adapter": {"params": {"a": 1}}}, {"adapter": {"kind": "x"}}) == {"adapter": {"kind": "x"}}


def test_rows_are_trained_measured_and_stored(bundled: Ablation, tmp_path: Path, metrics: None) -> None:
    """Two rows of two steps with two seeds on a few tones, with a text tower of one layer."""
    sounds, lines = tmp_path / "sounds", []
    sounds.mkdir()
    for i in range(12):
        wave = 0.3 * np.sin(2 * np.pi * 200 * (1 + i % 6) * np.arange(16_000) / 16_000)
        soundfile.write(sounds / f"{i}.wav", wave, 16_000)
        package = "heldout" if i % 3 == 0 else "used"
        lines.append(json.dumps({"audio": f"{i}.wav", "label": f"tone {'abcdef'[i % 6]}", "package": package}))
    (sounds / "manifest.jsonl").write_text("\n".join(lines))
    text = _tower(tmp_path / "tower")
    train = merged(
        bundled.config.train,
        {
            "init": {
                "text": str(text),
                "model": {"dim": 16, "adapter": {"kind": "decoupled", "params": {"frames": "linear"}}},
            },
            "data": {"seconds": 1.28, "phrases": 2, "cache": None, "workers": 0},
            "batch": 4,
            "steps": 2,
            "log_every": 1,
        },
    )
    small = {"kind": "cnn", "params": {"stem": 4, "stages": [[4, 4, 4], [8, 2, 4]], "width": 16, "heads": 2}}
    train = merged(train, {"init": {"model": {"audio_encoder": small}}})
    evaluation = replace(bundled.config.evaluation, mixtures=3, duration=2.56, phrases=2)
    config = replace(
        bundled.config,
        sounds=(str(sounds),),
        validation_groups=("heldout",),
        train=train,
        rows={},
        evaluation=evaluation,
        seeds=(0, 1),
        work_dir=str(tmp_path / "work"),
    )
    ablation = Ablation(config, tmp_path, bank_of=lambda labels, *_: PhraseBank([[label] for label in labels]))
    text_of_table = ablation.run(["full", "infonce"])
    assert [line.split(" | ")[0] for line in text_of_table.splitlines()[2:]] == ["| full", "| infonce", "| chance"]
    assert (ablation.folder / "table.md").read_text() == text_of_table
    kept = json.loads((ablation.folder / "table.json").read_text())
    first, second = kept["full"]
    assert (first["seed"], second["seed"], first["steps"]) == (0, 1, 2) and first["retrieval"]["label R@10"] >= 0
    assert first["frames"] != second["frames"], "seeds differ"
    assert 0 <= first["psds"]["PSDS2, no spread"] <= 100
    assert table(kept) == text_of_table
    log = ablation.folder / "full" / "seed-0" / "log.csv"
    stamp = log.stat().st_mtime_ns
    assert ablation.run(["full", "infonce"]) == text_of_table
    assert log.stat().st_mtime_ns == stamp
    assert FineLAP.from_pretrained(ablation.folder / "infonce" / "seed-1" / "last").name == "ablation-infonce"


def test_the_table_has_means_and_deviations_over_seeds() -> None:
    def run(value: float) -> dict[str, object]:
        groups: dict[str, dict[str, float]] = {}
        for group, figure in (*COLUMNS.values(), *CHANCE.values()):
            groups.setdefault(group, {})[figure] = value
        return {"steps": 9, "parameters": {"audio": 2_500_000}} | groups

    one, two = table({"full": [run(10.0)]}), table({"full": [run(10.0), run(14.0)]})
    assert "| full | 9 | 1 | 2.50 | 10.0 |" in one and "±" not in one
    assert "| full | 9 | 2 | 2.50 | 12.0 ± 2.8 |" in two
    assert two.splitlines()[-1] == "| chance | | | | 12.0 | 12.0 | 12.0 | 12.0 | 50.0 | 12.0 |  |  |"


def test_seeds_are_whole_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["ablate", "--seeds", "0,one"])
    assert "not a list of whole numbers" in capsys.readouterr().err


def _tower(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "tone", "the", "sound", "of", *"abcdef"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=40, **sizes)).save_pretrained(folder)
    return folder


def test_the_command_reports_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--config", str(tmp_path / "none.yaml")]) == 1
    assert "no such file" in capsys.readouterr().err
