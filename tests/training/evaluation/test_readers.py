"""Benchmarks are read in their published layouts, with invalid rows and missing audio reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.data.audio_cache import decode
from training.data.manifests import Phrase
from training.evaluation.readers import NAMES, Dataset, DatasetError, read_dataset
from training.evaluation.readers.base import AudioFolders, read_table, stem

AUDIO = np.zeros(160, np.float32)


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def audio(folder: Path, *names: str) -> None:
    """Writes decodable files; the readers only use their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith((".wav", ".flac", ".ogg", ".mp3")):
            soundfile.write(folder / name, AUDIO, 16_000)
        else:
            (folder / name).touch()


def audiocaps(root: Path) -> None:
    text(
        root / "test.csv",
        "audiocap_id,youtube_id,start_time,caption",
        '1,-abc_1,20,"Rain falls, then stops"',
        "2,-abc_1,20,Water drips",
        "3,plain,0,A dog barks",
        "4,ranged,130,A horn",
        "5,gone,10,Nothing",
        "6,bynumber,30,A bell",
    )
    audio(root / "test", "Y-abc_1.wav", "Yranged_130.000_140.000.flac", "6.ogg")
    audio(root / "audio", "plain.wav")


def clotho(root: Path) -> None:
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    text(root / "clotho_captions_evaluation.csv", header, 'A v1.2 take.wav,"a, b",c,d,e,f', "gone.wav,1,2,3,4,5")
    text(root / "clotho_captions_development.csv", header, "dev.wav,1,2,3,4,5")
    audio(root / "evaluation", "A v1.2 take.flac", "dev.wav")
    audio(root / "development", "dev.wav")


def esc50(root: Path) -> None:
    text(
        root / "meta/esc50.csv",
        "filename,fold,target,category,esc10,src_file,take",
        "1-100032-A-0.wav,1,0,dog,True,100032,A",
        "1-17150-A-12.wav,1,12,crackling_fire,True,17150,A",
        "5-9032-A-0.wav,5,0,dog,True,9032,A",
        "5-1-A-0.wav,5,0,dog,True,1,A",
    )
    audio(root / "audio", "1-100032-A-0.wav", "1-17150-A-12.ogg", "5-9032-A-0.wav")


def urbansound8k(root: Path) -> None:
    text(
        root / "metadata/UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark",
        "100263-2-0-117.wav,100263,58.5,62.5,1,10,2,children_playing",
        "100263-2-0-121.wav,100263,60.5,64.5,1,10,2,children_playing",
    )
    audio(root / "audio/fold5", "100032-3-0-0.wav")
    audio(root / "audio/fold10", "100263-2-0-117.wav")


def vggsound(root: Path) -> None:
    text(
        root / "vggsound.csv",
        "---g-f_I2yQ,1,people marching,test",
        "--0PQM4-hqg,30,waterfall burbling,train",
        '-0_6-x1UjB4,12,"female speech, woman speaking",test',
        "gone,5,people marching,test",
    )
    audio(root / "audio", "---g-f_I2yQ_000001.flac", "--0PQM4-hqg_000030.wav")
    audio(root / "test", "-0_6-x1UjB4_000012.m4a")


def desed(root: Path) -> None:
    text(
        root / "dataset/metadata/eval/public.tsv",
        "filename\tonset\toffset\tevent_label",
        "a_120_130.wav\t2.618\t4.679\tSpeech",
        "a_120_130.wav\t0.000\t2.081\tSpeech",
        "a_120_130.wav\t1.0\t9.5\tAlarm_bell_ringing",
        "quiet.wav\t\t\t",
        "gone.wav\t0.0\t1.0\tDog",
    )
    text(
        root / "dataset/metadata/eval/public_durations.tsv",
        "filename\tduration",
        "a_120_130.wav\t10.0",
        "silent.wav\t10.0",
    )
    audio(root / "dataset/audio/eval/public", "a_120_130.wav", "quiet.wav", "silent.wav")


def audioset_strong(root: Path) -> None:
    text(root / "mid_to_display_name.tsv", "/m/053hz1\tCheering", "/m/05zppz\tMale speech, man speaking", "/m/0\tOther")
    text(
        root / "audioset_eval_strong.tsv",
        "segment_id\tstart_time_seconds\tend_time_seconds\tlabel",
        "s9d-2nhuJCQ_30000\t2.627\t7.237\t/m/053hz1",
        "s9d-2nhuJCQ_30000\t0.0\t10.0\t/m/05zppz",
        "b_c_0\t1.0\t2.0\t/m/053hz1",
        "gone_5000\t1.0\t2.0\t/m/053hz1",
    )
    audio(root / "eval", "Ys9d-2nhuJCQ.flac")
    audio(root / "audio", "b_c_0.wav")


def scaper(*observations: tuple[str, str, float, float]) -> str:
    data = [
        {"time": t, "duration": d, "confidence": 1.0, "value": {"label": label, "role": role, "event_duration": 99.0}}
        for role, label, t, d in observations
    ]
    return json.dumps({"annotations": [{"namespace": "sound_event", "data": data}], "sandbox": {}}, indent=2)


def urbansed(root: Path) -> None:
    folder = root / "annotations/test"
    text(folder / "soundscape_test_0.txt", "4.25\t6.5\tdrilling", "1.0\t2.0\tdog_bark", "7.0\t8.0\tdrilling")
    text(folder / "soundscape_test_0.jams", scaper(("foreground", "siren", 0.0, 1.0)))
    jams = scaper(("background", "noise", 0.0, 10.0), ("foreground", "gun_shot", 3.0, 0.5))
    text(folder / "soundscape_test_1.jams", jams)
    text(folder / "soundscape_test_2.txt", "1.0\t2.0\tsiren")
    audio(root / "audio/test", "soundscape_test_0.wav", "soundscape_test_1.wav")


def grounding_row(audio_id: str = "Yx.wav", **phrase: object) -> dict:
    words = {"phrase": ["a", "dog", "barking"], "start_index": 0, "end_index": 2, "segments": [[3, 4.5], [0.5, 1.0]]}
    return {
        "audiocap_id": 7,
        "audio_id": audio_id,
        "tokens": ["a", "dog", "barking", "twice"],
        "phrases": [words | phrase],
    }


def audiogrounding(root: Path) -> None:
    never = {"phrase": "rain", "start_index": 3, "end_index": 3, "segments": []}
    first = grounding_row() | {"tokens": "a dog barking in rain"}
    first["phrases"].append(never)
    rows = [first, grounding_row() | {"audiocap_id": 8}, grounding_row("gone.wav")]
    text(root / "test.json", json.dumps(rows, indent=1))
    audio(root / "audio/test", "Yx.wav")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "audiocaps": audiocaps,
    "clotho": clotho,
    "esc50": esc50,
    "urbansound8k": urbansound8k,
    "vggsound": vggsound,
    "desed": desed,
    "audioset-strong": audioset_strong,
    "urbansed": urbansed,
    "audiogrounding": audiogrounding,
}


def made(root: Path, name: str, split: str | None = None) -> Dataset:
    LAYOUTS[name](root)
    return read_dataset(name, root, split)


def files(dataset: Dataset) -> list[str]:
    return [i.path.name for i in dataset.items]


def test_every_dataset_has_a_test_layout() -> None:
    assert set(LAYOUTS) == set(NAMES)


def test_audiocaps(tmp_path: Path) -> None:
    dataset = made(tmp_path, "audiocaps")
    assert dataset.task == "retrieval" and dataset.missing == ("gone_10",)
    assert files(dataset) == ["Y-abc_1.wav", "plain.wav", "Yranged_130.000_140.000.flac", "6.ogg"]
    assert dataset.items[0].captions == ("Rain falls, then stops", "Water drips")
    assert dataset.items[0].group == "-abc_1"


def test_clotho(tmp_path: Path) -> None:
    dataset = made(tmp_path, "clotho")
    assert dataset.task == "retrieval" and dataset.missing == ("gone.wav",)
    assert files(dataset) == ["A v1.2 take.flac"] and dataset.items[0].captions == ("a, b", "c", "d", "e", "f")
    assert files(read_dataset("clotho", tmp_path, "development")) == ["dev.wav"]


def test_esc50(tmp_path: Path) -> None:
    dataset = made(tmp_path, "esc50")
    assert dataset.task == "classification" and dataset.classes == ("crackling fire", "dog")
    assert [i.captions for i in dataset.items] == [("dog",), ("crackling fire",), ("dog",)]
    assert files(dataset)[1] == "1-17150-A-12.ogg" and dataset.missing == ("5-1-A-0.wav",)
    fold = read_dataset("esc50", tmp_path, "1")
    assert len(fold.items) == 2 and fold.classes == dataset.classes and fold.items[0].group == "100032"


def test_urbansound8k(tmp_path: Path) -> None:
    dataset = made(tmp_path, "urbansound8k")
    assert dataset.classes == ("children playing", "dog bark") and dataset.missing == ("100263-2-0-121.wav",)
    assert [(i.captions, i.group) for i in dataset.items] == [
        (("dog bark",), "100032"),
        (("children playing",), "100263"),
    ]
    assert files(read_dataset("urbansound8k", tmp_path, "10")) == ["100263-2-0-117.wav"]


def test_vggsound(tmp_path: Path) -> None:
    dataset = made(tmp_path, "vggsound")
    assert files(dataset) == ["---g-f_I2yQ_000001.flac", "-0_6-x1UjB4_000012.m4a"]
    assert [i.captions for i in dataset.items] == [("people marching",), ("female speech, woman speaking",)]
    assert dataset.classes == ("female speech, woman speaking", "people marching", "waterfall burbling")
    assert dataset.missing == ("gone_000005",)
    assert files(read_dataset("vggsound", tmp_path, "train")) == ["--0PQM4-hqg_000030.wav"]


def test_desed(tmp_path: Path) -> None:
    dataset = made(tmp_path, "desed")
    assert dataset.task == "detection" and len(dataset.classes) == 10 and dataset.missing == ("gone.wav",)
    assert dataset.classes[0] == "alarm bell ringing" and "electric shaver toothbrush" in dataset.classes
    assert files(dataset) == ["a_120_130.wav", "quiet.wav", "silent.wav"]
    assert dataset.items[0].phrases == (
        Phrase("speech", ((0.0, 2.081), (2.618, 4.679))),
        Phrase("alarm bell ringing", ((1.0, 9.5),)),
    )
    assert dataset.items[1].phrases == dataset.items[2].phrases == ()


def test_desed_validation_without_the_archive_folder(tmp_path: Path) -> None:
    text(tmp_path / "metadata/validation/validation.tsv", "filename\tonset\toffset\tevent_label", "Ya.wav\t0\t1\tCat")
    audio(tmp_path / "audio/validation", "Ya.wav")
    dataset = read_dataset("desed", tmp_path, "validation")
    assert dataset.items[0].phrases == (Phrase("cat", ((0.0, 1.0),)),)


def test_audioset_strong(tmp_path: Path) -> None:
    dataset = made(tmp_path, "audioset-strong")
    assert dataset.classes == ("Cheering", "Male speech, man speaking") and dataset.missing == ("gone_5000",)
    assert files(dataset) == ["Ys9d-2nhuJCQ.flac", "b_c_0.wav"]
    assert [i.group for i in dataset.items] == ["s9d-2nhuJCQ", "b_c"]
    assert dataset.items[0].phrases == (
        Phrase("Cheering", ((2.627, 7.237),)),
        Phrase("Male speech, man speaking", ((0.0, 10.0),)),
    )


def test_urbansed_prefers_text_and_reads_jams(tmp_path: Path) -> None:
    dataset = made(tmp_path, "urbansed")
    assert len(dataset.classes) == 10 and "dog bark" in dataset.classes and dataset.missing == ("soundscape_test_2",)
    drilling, bark = Phrase("drilling", ((4.25, 6.5), (7.0, 8.0))), Phrase("dog bark", ((1.0, 2.0),))
    assert [i.phrases for i in dataset.items] == [(drilling, bark), (Phrase("gun shot", ((3.0, 3.5),)),)]


def test_audiogrounding(tmp_path: Path) -> None:
    dataset = made(tmp_path, "audiogrounding")
    barking = Phrase("a dog barking", ((0.5, 1.0), (3.0, 4.5)))
    assert dataset.task == "grounding" and dataset.classes == () and dataset.missing == ("7:gone.wav",)
    assert [i.phrases for i in dataset.items] == [(barking, Phrase("rain", ())), (barking,)]
    assert [i.captions for i in dataset.items] == [("a dog barking in rain",), ("a dog barking twice",)]
    assert len({i.audio_id for i in dataset.items}) == 2 and {i.group for i in dataset.items} == {"Yx.wav"}


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique_and_audio_decodes(tmp_path: Path, name: str) -> None:
    dataset = made(tmp_path, name)
    assert dataset.name == name and len({i.audio_id for i in dataset.items}) == len(dataset.items)
    assert all(len(decode(i.path)) == 160 for i in dataset.items if i.path.suffix != ".m4a")


@pytest.mark.parametrize("name", NAMES)
def test_missing_audio_lists_the_searched_folders(tmp_path: Path, name: str) -> None:
    LAYOUTS[name](tmp_path)
    folders = {p.parent for p in tmp_path.rglob("*") if p.suffix in (".wav", ".flac", ".ogg", ".m4a")}
    for path in [p for f in folders for p in f.iterdir() if p.suffix in (".wav", ".flac", ".ogg", ".m4a")]:
        path.unlink()
    with pytest.raises(DatasetError, match="none of .* looked in") as error:
        read_dataset(name, tmp_path)
    assert any(str(f) in str(error.value) for f in folders)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_folder_names_the_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=f"{tmp_path}/"):
        read_dataset(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_split_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="has no split 'nine'; it has "):
        made(tmp_path, name, "nine")


def test_an_unknown_dataset_or_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="audiocaps"):
        read_dataset("fsd", tmp_path)
    with pytest.raises(DatasetError, match="not a folder"):
        read_dataset("esc50", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "file", "row", "reason"),
    [
        ("audiocaps", "test.csv", "9,id,ten,A dog", "start_time 'ten'"),
        ("audiocaps", "test.csv", "9,id,10,", "empty caption"),
        ("audiocaps", "test.csv", "9,id,10", "3 fields where 4"),
        ("clotho", "clotho_captions_evaluation.csv", "b.wav,1,2,3,4, ", "empty caption_5"),
        ("esc50", "meta/esc50.csv", "a.wav,6,0,dog,True,1,A", "fold '6'"),
        ("esc50", "meta/esc50.csv", "a.wav,1,0,,True,1,A", "empty category"),
        ("urbansound8k", "metadata/UrbanSound8K.csv", "a.wav,1,0,1,1,11,3,dog_bark", "fold '11'"),
        ("vggsound", "vggsound.csv", "id,1,dog,eval", "split 'eval'"),
        ("vggsound", "vggsound.csv", "id,-1,dog,test", "start '-1'"),
        ("vggsound", "vggsound.csv", "id,1,female speech, woman speaking,test", "5 fields where 4"),
        ("desed", "dataset/metadata/eval/public.tsv", "a.wav\t2.0\t1.0\tDog", "onset < offset"),
        ("desed", "dataset/metadata/eval/public.tsv", "a.wav\t2.0\t3.0\tFox", "'Fox'"),
        ("desed", "dataset/metadata/eval/public.tsv", "a.wav\t2.0\t\tDog", "segment"),
        ("desed", "dataset/metadata/eval/public.tsv", "a.wav\t2.0\tnan\tDog", "segment"),
        ("audioset-strong", "audioset_eval_strong.tsv", "a_0\t0.0\t1.0\t/m/none", "/m/none"),
        ("audioset-strong", "audioset_eval_strong.tsv", "plain\t0.0\t1.0\t/m/053hz1", "milliseconds"),
        ("audioset-strong", "audioset_eval_strong.tsv", "a_0\t-1.0\t1.0\t/m/053hz1", "segment"),
        ("urbansed", "annotations/test/soundscape_test_0.txt", "1.0\t2.0", "2 fields where 3"),
        ("urbansed", "annotations/test/soundscape_test_0.txt", "1.0\t2.0\tcat", "'cat'"),
    ],
)
def test_invalid_rows_are_reported_with_file_and_line(
    tmp_path: Path, name: str, file: str, row: str, reason: str
) -> None:
    LAYOUTS[name](tmp_path)
    with (tmp_path / file).open("a", encoding="utf-8") as f:
        f.write(row + "\n")
    line = len((tmp_path / file).read_text().splitlines())
    with pytest.raises(DatasetError, match=reason) as error:
        read_dataset(name, tmp_path)
    assert f"{tmp_path / file}, line {line}: " in str(error.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (grounding_row(segments=[[2.0, 1.0]]), "onset < offset"),
        (grounding_row(segments=[[1.0]]), "not a pair"),
        (grounding_row(phrase=[]), "empty phrase"),
        (grounding_row(""), "audio_id ''"),
        (grounding_row() | {"audio_id": 5}, "audio_id 5"),
        (grounding_row() | {"phrases": []}, "no phrases"),
        ({"audio_id": "Yx.wav"}, "phrases"),
        ("words", "not as published"),
    ],
)
def test_invalid_grounding_items_are_reported(tmp_path: Path, row: object, reason: str) -> None:
    text(tmp_path / "test.json", json.dumps([grounding_row(), row]))
    audio(tmp_path / "test", "Yx.wav")
    with pytest.raises(DatasetError, match=f"test.json, item 2: .*{reason}"):
        read_dataset("audiogrounding", tmp_path)


def test_invalid_json_is_reported_with_the_line(tmp_path: Path) -> None:
    text(tmp_path / "test.json", "[", "{,}]")
    with pytest.raises(DatasetError, match="test.json, line 2"):
        read_dataset("audiogrounding", tmp_path)
    text(tmp_path / "test.json", '{"filename": {}}')
    with pytest.raises(DatasetError, match="want a list"):
        read_dataset("audiogrounding", tmp_path)
    (tmp_path / "test.json").write_bytes(b'["caf\xe9"]')
    with pytest.raises(DatasetError, match="test.json: not UTF-8"):
        read_dataset("audiogrounding", tmp_path)
    text(tmp_path / "annotations/test/a.jams", "{", "oops")
    with pytest.raises(DatasetError, match="a.jams, line 2"):
        read_dataset("urbansed", tmp_path)
    text(tmp_path / "annotations/test/a.jams", '{"annotations": [{"data": [{"time": 0}]}]}')
    with pytest.raises(DatasetError, match="not as Scaper"):
        read_dataset("urbansed", tmp_path)


def test_tables_count_lines_within_quotes_and_reject_other_encodings(tmp_path: Path) -> None:
    path = text(tmp_path / "t.csv", "\ufeffa,b", '"one', 'two",x', "", "3,4")
    assert list(read_table(path, ("a",))) == [(3, {"a": "one\ntwo", "b": "x"}), (5, {"a": "3", "b": "4"})]
    with pytest.raises(DatasetError, match="no column c"):
        list(read_table(path, ("c",)))
    path.write_bytes(b"a,b\ncaf\xe9,1\n")
    with pytest.raises(DatasetError, match="not UTF-8"):
        list(read_table(path))
    tabs = text(tmp_path / "t.tsv", 'a"\tb')
    assert list(read_table(tabs, ("x", "y"), delimiter="\t", header=False)) == [(1, {"x": 'a"', "y": "b"})]


def test_audio_is_found_by_order_of_folder_then_name_then_extension(tmp_path: Path) -> None:
    audio(tmp_path / "one", "a.mp3", "a.flac", "B.WAV")
    audio(tmp_path / "two", "a.wav", "c.ogg", "d.txt")
    found = AudioFolders([tmp_path / "none", tmp_path / "one", tmp_path / "two"])
    assert found.find(["a.wav"]) == tmp_path / "one/a.flac"
    assert found.find(["B.mp3"]) == tmp_path / "one/B.WAV"
    assert found.find(["x", "c", "a"]) == tmp_path / "two/c.ogg"
    assert found.find(["d"]) is None
    assert stem("v1.2") == "v1.2" and stem("v1.2.wav") == "v1.2"
