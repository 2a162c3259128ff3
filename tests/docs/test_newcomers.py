"""Makes the mistakes in docs/development/errors.md and compares what is said with the page."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import httpx
import pytest
import soundfile

from app.cli.main import main
from benchmarks.common import REPO, SOUNDS, Server
from tests.docs.compare import same_text

PAGE = REPO / "docs" / "development" / "errors.md"
ROWS = re.findall(r"^\| ([^|]+) \| (?:`([^|]+)`)? ?\| `([^|]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_page_has_thirty_mistakes() -> None:
    assert len(ROWS) >= 30 and sum(bool(command) for _, command, _ in ROWS) >= 30


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sound and a folder without any."""
    samples, rate = soundfile.read(next(SOUNDS.glob("dog-*.ogg")))
    soundfile.write(tmp_path / "a.wav", samples, rate)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("not audio")
    for name in [name for name in os.environ if name.startswith("FINELAP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("mistake", "command", "message"), [row for row in ROWS if row[1].startswith("finelap")])
def test_commands(
    mistake: str, command: str, message: str, place: Path, service: Server, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("FINELAP_SERVER", service.address)
    data = service.log.parent / "data"
    try:
        code = main(shlex.split(command.replace("$DATA", str(data)))[1:])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code in (1, 2)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    same_text(message, last)


@pytest.mark.parametrize(("mistake", "command", "message"), [row for row in ROWS if row[1].startswith("curl")])
def test_requests(mistake: str, command: str, message: str, place: Path, service: Server) -> None:
    clip = service.get("/clips", limit=1).json()["clips"][0]["id"]
    words = shlex.split(command.replace("$S", service.address).replace("$ID", clip))[1:]
    url, fields, files, data, headers = words[0], [], [], None, {}
    for flag, value in zip(words[1::2], words[2::2], strict=True):
        if flag == "-F":
            name, _, content = value.partition("=")
            if content.startswith("@"):
                path = Path(content[1:])
                files.append((name, (path.name, path.read_bytes())))
            else:
                fields.append((name, (None, content)))
        elif flag == "-H":
            headers |= dict([value.split(":", 1)])
        else:
            data = value
    if fields or files:
        response = httpx.post(url, files=[*fields, *files])
    elif data is not None:
        kind = {"content-type": "application/x-www-form-urlencoded"}
        response = httpx.post(url, content=data, headers=headers or kind)
    else:
        response = httpx.get(url)
    assert response.status_code >= 400
    same_text(message, response.json()["detail"])
