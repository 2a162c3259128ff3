"""The trainer on clips of tones: learning, exact resume after a kill, frozen parameters, and safe checkpoints."""

from __future__ import annotations

import csv
import importlib.util
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch

from model.config import ConfigError
from model.finelap import FineLAP
from training.checkpointing import TrainError, recover, replace_folder
from training.config import GroupConfig, LossConfig, OptimiserConfig, ValidationConfig
from training.optim import AveragedWeights, build_optimiser, cosine_with_warmup, train_mode
from training.tasks.dual_stream import DualStreamTask

SCRIPT = Path(__file__).with_name("trainer_case.py")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trainer_case", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trainer_case"] = module
    spec.loader.exec_module(module)
    return module


case = _load()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of an uninterrupted run with averaged weights."""
    folder = tmp_path_factory.mktemp("straight")
    assert train(folder) == folder / "last"
    return folder


def train(folder: Path, model: FineLAP | None = None, tones: object = None, **changes: object) -> Path:
    from training.trainer import train

    config = case.tiny_config(folder, **changes)
    return train(config, folder, model=model or case.tiny_model(), batches=tones or case.Tones())


def rows(folder: Path, name: str = "log") -> list[dict[str, str]]:
    """The rows of a CSV file without the column that depends on the machine's speed."""
    with (folder / f"{name}.csv").open() as f:
        return [{k: v for k, v in row.items() if k != "clips_per_second"} for row in csv.DictReader(f)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return FineLAP.from_pretrained(folder).state_dict()


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def test_a_run_learns_logs_and_writes_a_checkpoint(straight: Path) -> None:
    log = rows(straight)
    assert [int(row["step"]) for row in log] == list(range(1, 13))
    losses = [float(row["loss"]) for row in log]
    assert losses[-1] < 0.6 * losses[0]
    for row in log:
        assert float(row["loss"]) == pytest.approx(float(row["clip_loss"]) + float(row["frame_loss"]), rel=1e-5)
        assert float(row["lr"]) == pytest.approx(3e-3 * cosine_with_warmup(int(row["step"]) - 1, 12, 2))
    model = FineLAP.from_pretrained(straight / "last")
    assert model.name == "tones" and model.encode_text(["low tone"]).shape == (1, 16)
    assert list((straight / "tensorboard").iterdir())
    state = torch.load(straight / "state" / "training.pt", weights_only=True)
    assert_same(state["average"] | {}, {k: v for k, v in weights(straight / "last").items() if k in state["average"]})
    assert not torch.equal(state["task"]["model.adapter.clip.0.weight"], state["average"]["adapter.clip.0.weight"])


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(straight: Path, tmp_path: Path) -> None:
    """The kill comes a few steps after a save; the rows of those steps are dropped and written again."""
    path = os.pathsep.join([str(SCRIPT.parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    work = tmp_path / "work"
    command = [sys.executable, str(SCRIPT), str(work)]
    killed = subprocess.run([*command, "7"], env=environment, capture_output=True, cwd=SCRIPT.parents[2])
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [int(row["step"]) for row in rows(work)][-1] == 7
    assert torch.load(work / "state" / "training.pt", weights_only=True)["step"] == 4
    again = subprocess.run(command, env=environment, capture_output=True, cwd=SCRIPT.parents[2])
    assert again.returncode == 0, again.stderr.decode()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert rows(work) == rows(tmp_path / "whole")
    assert_same(weights(work / "last"), weights(tmp_path / "whole" / "last"))


def test_frozen_parameters_do_not_change(tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in case.tiny_model().state_dict().items()}
    groups = (
        GroupConfig("text.encoder.", frozen=True),
        GroupConfig("audio_encoder.trunk", frozen=True),
        GroupConfig("adapter.frames", learning_rate=0.0),
        GroupConfig("b_", frozen=True),
    )
    optimiser = OptimiserConfig(learning_rate=3e-3, warmup=1, groups=groups)
    train(tmp_path, optimiser=optimiser, steps=3, ema=0.0)
    after = weights(tmp_path / "last")
    still = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {n for n in before if n.startswith(("text.encoder.", "audio_encoder.trunk", "adapter.frames", "b_"))}
    assert any(n.endswith("running_mean") for n in frozen), "batch statistics are among what must stay"
    assert still == frozen


def test_batch_statistics_change_if_nothing_is_frozen(straight: Path) -> None:
    before, after = case.tiny_model().state_dict(), weights(straight / "last")
    assert not [n for n in before if torch.equal(before[n], after[n]) and before[n].is_floating_point()]


@pytest.mark.parametrize(("loss", "still"), [({"clip_weight": 0.0}, "adapter.clip"), ({"frame_weight": 0.0}, "frames")])
def test_a_loss_with_weight_zero_trains_nothing(tmp_path: Path, loss: dict[str, float], still: str) -> None:
    before = case.tiny_model().state_dict()
    train(tmp_path, loss=LossConfig(**loss), steps=2, ema=0.0)
    after = weights(tmp_path / "last")
    name = next(n for n in before if still in n and n.endswith("weight"))
    assert torch.equal(before[name], after[name])
    assert ("clip_loss" in rows(tmp_path)[0], "frame_loss" in rows(tmp_path)[0]) == (
        "clip_weight" not in loss,
        "frame_weight" not in loss,
    )


def test_infonce_trains_and_half_precision_needs_a_gpu(tmp_path: Path) -> None:
    train(tmp_path, loss=LossConfig(clip="infonce"), steps=2)
    assert 0 < float(rows(tmp_path)[0]["clip_loss"]) < 5
    for precision in ("bf16", "fp16"):
        with pytest.raises(ConfigError, match=f"precision: {precision} needs a GPU"):
            train(tmp_path / precision, precision=precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_the_same_in_every_precision(tmp_path: Path, straight: Path, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    train(tmp_path, precision=precision, cpu=False)
    found, expected = rows(tmp_path), rows(straight)
    assert float(found[0]["loss"]) == pytest.approx(float(expected[0]["loss"]), rel=0.1)  # other dropout
    assert float(found[-1]["loss"]) < 0.6 * float(found[0]["loss"])
    assert all(t.isfinite().all() and t.dtype != torch.bfloat16 for t in weights(tmp_path / "last").values())
    again = train(tmp_path, precision=precision, cpu=False)
    assert again == tmp_path / "last"


def test_accumulated_gradients_are_the_mean_of_their_parts(tmp_path: Path) -> None:
    """Compared with the same step by hand, without dropout and augmentation."""

    quiet = {"spec_augment": None, "ema": 0.0, "steps": 1}
    optimiser = OptimiserConfig(learning_rate=1e-2, warmup=0, groups=(GroupConfig("adapter.frames", frozen=True),))
    model = _without_dropout(case.tiny_model())
    train(tmp_path, model, case.Tones(4), accumulate=2, optimiser=optimiser, **quiet)
    byhand = _without_dropout(case.tiny_model())
    adam = build_optimiser(byhand, optimiser)
    stream = DualStreamTask(byhand, LossConfig(), None)
    train_mode(byhand)
    for part in range(2):
        losses = stream(case.Tones(4).batch(part), None)
        ((losses["clip"] + losses["frame"]) / 2).backward()
    adam.step()
    for name, value in byhand.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def _without_dropout(model: FineLAP) -> FineLAP:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def test_the_mel_of_a_batch_equals_the_models() -> None:
    from training.tasks.dual_stream import batch_mel

    for snip in (True, False):
        config = replace(case.tiny_model().config.mel, snip_edges=snip, pad_value=-3.0)
        model = case.tiny_model(mel=config)
        batch = case.Tones(3).batch(0)
        lengths = torch.tensor([300, 20_000, 40_960])
        waves = [w[:n].numpy() - w[:n].numpy().mean() for w, n in zip(batch.waveforms, lengths, strict=True)]
        padded = torch.stack(
            [torch.nn.functional.pad(w[:n], (0, 40_960 - n)) for w, n in zip(batch.waveforms, lengths, strict=True)]
        )
        mel, valid = batch_mel(model, padded, lengths, 16)
        torch.testing.assert_close(mel, model.mel(waves, 256), rtol=1e-4, atol=1e-4)
        assert valid.tolist() == ([1, 123, 254] if snip else [2, 125, 256])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    """From step 8 on files may not grow past a few kilobytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(number: int) -> None:
        if number == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    try:
        with pytest.raises(
            TrainError, match=r"last: the checkpoint of step 8 could not be written .*previous one is kept"
        ):
            train(tmp_path, tones=case.Tones(before=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert FineLAP.from_pretrained(tmp_path / "last").name == "tones"
    assert not [p.name for p in tmp_path.rglob(".*")]
    assert torch.load(tmp_path / "state" / "training.pt", weights_only=True)["step"] == 4
    train(tmp_path)
    assert [int(r["step"]) for r in rows(tmp_path)] == list(range(1, 13))


def test_a_stop_between_the_renames_is_repaired(tmp_path: Path) -> None:
    def write(text: str):  # noqa: ANN202
        return lambda folder: (folder / "a").write_text(text)

    replace_folder(tmp_path / "last", write("one"), "1")
    (tmp_path / "last").rename(tmp_path / ".last.old")
    (tmp_path / ".last.new").mkdir()
    recover(tmp_path, ["last", "best"])
    assert {p.name for p in tmp_path.iterdir()} == {"last"} and (tmp_path / "last" / "a").read_text() == "one"
    replace_folder(tmp_path / "last", write("two"), "2")
    assert {p.name for p in tmp_path.iterdir()} == {"last"} and (tmp_path / "last" / "a").read_text() == "two"


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    class Broken(case.Tones):
        def batch(self, number: int):  # noqa: ANN202
            batch = super().batch(number)
            return replace(batch, waveforms=batch.waveforms * float("nan")) if number == 5 else batch

    with pytest.raises(TrainError, match="step 6: the loss is nan"):
        train(tmp_path, tones=Broken())
    assert FineLAP.from_pretrained(tmp_path / "last")


def test_a_run_with_other_settings_is_not_resumed(straight: Path) -> None:
    with pytest.raises(TrainError, match="another optimiser, seed"):
        train(straight, seed=5, optimiser=OptimiserConfig())


def test_validation_chooses_the_best(tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    lines = []
    for i, (name, hertz) in enumerate(case.TONES.items()):
        wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(20_000) / 16_000)
        soundfile.write(sounds / f"{i}.wav", wave, 16_000)
        phrases = f'[{{"phrase": "{name}", "segments": [[0.0, 1.25]]}}]'
        lines.append(f'{{"audio_id": "{i}", "audio_path": "{i}.wav", "caption": "a {name}", "phrases": {phrases}}}')
    (sounds / "broken.wav").write_text("no audio")
    lines.append('{"audio_id": "x", "audio_path": "broken.wav", "caption": "a low tone"}')
    (sounds / "m.jsonl").write_text("\n".join(lines))
    validation = ValidationConfig(manifest="sounds/m.jsonl", every=2, choose="loss", phrases=3)
    folder = tmp_path / "work"
    from training.trainer import train as run

    config = case.tiny_config(folder, validation=validation, steps=6, ema=0.0)
    assert run(config, tmp_path, model=case.tiny_model(), batches=case.Tones()) == folder / "best"
    found = rows(folder, "validation")
    assert [int(r["step"]) for r in found] == [2, 4, 6]
    assert {"loss", "clip_loss", "frame_loss", "R@1", "mAP@10", "frame_AP"} < set(found[0])
    state = torch.load(folder / "state" / "training.pt", weights_only=True)
    assert state["best"] == min(float(r["loss"]) for r in found)
    if found[-1]["loss"] == min(r["loss"] for r in found):
        assert_same(weights(folder / "best"), weights(folder / "last"))
    with pytest.raises(ConfigError, match="choose: expected 'mAP@10'"):
        from training.config import parse_config

        parse_config(ValidationConfig, {"choose": "beauty"}, "x")


def test_averaged_weights_follow_their_definition() -> None:
    model = torch.nn.Linear(3, 2)
    average = AveragedWeights(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.update(model, step)
    own = model.weight.detach().clone()
    with average.applied(model):
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)


def test_groups_that_match_nothing_are_errors() -> None:
    model = case.tiny_model()
    with pytest.raises(ConfigError, match="'audio_encoder.head'"):
        build_optimiser(model, OptimiserConfig(groups=(GroupConfig("audio_encoder.head"),)))
    with pytest.raises(ConfigError, match="everything is frozen"):
        build_optimiser(model, OptimiserConfig(groups=(GroupConfig("", frozen=True),)))
    decayed = build_optimiser(model, OptimiserConfig(weight_decay=0.1))
    for group in decayed.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_the_schedule_rises_and_falls() -> None:
    values = [cosine_with_warmup(s, 100, 10) for s in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9] == pytest.approx(1.0) and values[10] == pytest.approx(1.0)
    assert values[55] == pytest.approx(0.5) and 0 < values[99] < 1e-3
    assert values == sorted(values[:10]) + sorted(values[10:], reverse=True)


def test_a_frozen_tower_encodes_each_phrase_once_and_its_projector_learns() -> None:
    stream = DualStreamTask(case.tiny_model().train(), LossConfig(), None)
    tower, names = stream.model.text, [*case.TONES, *case.TONES]
    tower.encoder.eval().requires_grad_(False)
    plain = stream.embed_texts(names)
    read: list[int] = []
    tower.encoder.register_forward_hook(lambda module, inputs, output: read.append(1))
    remembered = stream.embed_texts(names, cached=True)
    again = stream.embed_texts(names[:3], cached=True)
    assert len(read) == len(case.TONES), "each distinct phrase is encoded once"
    torch.testing.assert_close(remembered, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(again, remembered[:3], rtol=0, atol=1e-6)  # the projector reads another batch
    remembered[0, 0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.projector.parameters() if p.ndim == 2)


def test_a_tower_that_learns_is_not_cached() -> None:
    stream = DualStreamTask(case.tiny_model().train(), LossConfig(), None)
    stream.model.text.eval()
    before = stream.embed_texts(["low tone"], cached=True)
    with torch.no_grad():
        for parameter in stream.model.text.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert not torch.allclose(stream.embed_texts(["low tone"], cached=True), before) and not stream.cache
