"""Sounds are fetched from a Debian package built by the test: checked, cut, resumed, and reported if missing."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.data.manifests import read_labelled
from training.recipes.fetch_sounds import COLUMNS, RECIPE, FetchError, RecipeSound, fetch, read_sounds

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


def wav(seconds: float, rate: int, channels: int) -> bytes:
    """Half a second of silence, then a tone in the first channel."""
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * t) * (t >= 0.5)
    samples = np.stack([tone] + [np.zeros_like(tone)] * (channels - 1), axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV")
    return buffer.getvalue()


PLAIN, PACKED = wav(1.0, 22_050, 2), wav(2.0, 16_000, 1)


def sound(audio: str, path: str, content: bytes | None = None, **changes: object) -> RecipeSound:
    digest = hashlib.sha1(content).hexdigest() if content else ""
    values = {"package": "beeps", "group": "beeps", "label": "beep", "licence": "CC0", "sha1": digest}
    values |= {"start_s": None, "duration_s": 1.0, "sample_rate_hz": 22_050, "audio": audio, "path": path}
    return RecipeSound(**(values | changes))  # type: ignore[arg-type]


GOOD = sound("beeps/beep-1.ogg", "usr/share/beeps/beep.wav", PLAIN)
CUT = sound("beeps/cut.ogg", "beeps/data/long.wav", start_s=0.5, duration_s=0.75, sample_rate_hz=8000, label="")


class FakeApt:
    """Provides one package, built at each download."""

    def __init__(self) -> None:
        self.downloaded: list[str] = []

    def __call__(self, package: str, folder: Path) -> Path:
        self.downloaded.append(package)
        if package != "beeps":
            raise FetchError(f"{package}: not downloaded: no such package")
        root = folder / "build"
        (root / "DEBIAN").mkdir(parents=True)
        fields = "Package: beeps\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: beeps\n"
        (root / "DEBIAN" / "control").write_text(fields)
        home = root / "usr" / "share" / "beeps"
        home.mkdir(parents=True)
        (home / "beep.wav").write_bytes(PLAIN)
        with zipfile.ZipFile(home / "data.pk3", "w") as archive:
            archive.writestr("data/long.wav", PACKED)
        deb = folder / "beeps_1_all.deb"
        subprocess.run(["dpkg-deb", "--build", str(root), str(deb)], check=True, capture_output=True)
        return deb


@needs_dpkg
def test_sounds_are_converted_and_can_be_read(tmp_path: Path) -> None:
    assert fetch([GOOD, CUT], tmp_path, FakeApt()) == []
    whole, rate = soundfile.read(tmp_path / GOOD.audio, always_2d=True)
    assert (rate, whole.shape) == (22_050, (22_050, 1)), "mono at its own rate"
    assert np.abs(whole[:10_000]).max() < 0.02 and 0.2 < np.abs(whole[12_000:]).max() < 0.3, "channels are averaged"
    cut, rate = soundfile.read(tmp_path / CUT.audio)
    assert (rate, len(cut)) == (8000, 6000) and np.abs(cut[:1000]).max() > 0.4, "the excerpt, at the lower rate"
    items = read_labelled(tmp_path)
    assert [(i.audio_id, i.captions, i.group) for i in items] == [
        (GOOD.audio, ("beep",), "beeps"),
        (CUT.audio, (), "beeps"),
    ]
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.glob("tmp*"))


@needs_dpkg
def test_existing_sounds_are_not_fetched_again(tmp_path: Path) -> None:
    apt = FakeApt()
    fetch([GOOD], tmp_path, apt)
    written = (tmp_path / GOOD.audio).stat().st_mtime_ns
    assert fetch([GOOD], tmp_path, apt) == [] and apt.downloaded == ["beeps"]
    assert fetch([GOOD, CUT], tmp_path, apt) == [] and apt.downloaded == ["beeps", "beeps"]
    assert (tmp_path / GOOD.audio).stat().st_mtime_ns == written
    assert len(read_labelled(tmp_path)) == 2


@needs_dpkg
def test_fetching_one_package_keeps_others_in_the_manifest(tmp_path: Path) -> None:
    apt, other = FakeApt(), sound("gone/x.ogg", "x.wav", package="gone")
    fetch([GOOD, other], tmp_path, apt, packages=["beeps"])
    assert apt.downloaded == ["beeps"]
    assert fetch([GOOD, other], tmp_path, apt, packages=["gone"]) and apt.downloaded == ["beeps", "gone"]
    assert [i.audio_id for i in read_labelled(tmp_path)] == [GOOD.audio]


@needs_dpkg
def test_missing_sounds_are_reported_and_the_rest_is_fetched(tmp_path: Path) -> None:
    gone = [sound(f"gone/{i}.ogg", "x.wav", package="gone") for i in range(3)]
    other = sound("beeps/other.ogg", GOOD.path, PACKED)
    absent = sound("beeps/absent.ogg", "usr/share/none.wav")
    problems = fetch([*gone, other, absent, GOOD], tmp_path, FakeApt())
    digests = [hashlib.sha1(c).hexdigest() for c in (PLAIN, PACKED)]
    assert problems == [
        f"beeps, {GOOD.path}: sha1 is {digests[0]}, not {digests[1]}",
        "beeps, usr/share/none.wav: not in the package",
        "gone: not downloaded: no such package (3 sounds)",
    ]
    assert [i.audio_id for i in read_labelled(tmp_path)] == [GOOD.audio]


def write_recipe(path: Path, **changes: str) -> Path:
    row = {"package": "p", "group": "p", "path": "a.wav", "audio": "p/a.ogg", "label": "", "licence": "", "sha1": ""}
    row |= {"start_s": "0.0", "duration_s": "1.5", "sample_rate_hz": "8000"} | changes
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerow(row)
    return path


def test_recipes_are_checked(tmp_path: Path) -> None:
    assert read_sounds(write_recipe(tmp_path / "r.csv"))[0].start_s == 0.0
    assert read_sounds(write_recipe(tmp_path / "r.csv", start_s=""))[0].start_s is None
    for changes in ({"audio": "../a.ogg"}, {"audio": "/a.ogg"}, {"audio": "a.wav"}, {"duration_s": "long"}):
        with pytest.raises(FetchError, match="r.csv, line 2"):
            read_sounds(write_recipe(tmp_path / "r.csv", **changes))
    (tmp_path / "r.csv").write_text("package,path\n")
    with pytest.raises(FetchError, match="columns are package, path; want"):
        read_sounds(tmp_path / "r.csv")


def test_the_bundled_recipe_is_complete() -> None:
    sounds = read_sounds(RECIPE)
    assert len({s.audio for s in sounds}) == len(sounds) > 4000
    assert all(s.licence and s.path and s.package for s in sounds)
