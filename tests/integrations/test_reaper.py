"""The script for REAPER, run by Lua with a stand-in for REAPER's functions, against a real service."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import soundfile

from benchmarks.common import SOUNDS, Server

# REAPER's functions that the script calls, as its documentation describes them
_REAPER = """
reaper = {}
function reaper.GetUserInputs() return true, os.getenv("QUERY") end
function reaper.GetProjectPath() return os.getenv("PROJECT") end
function reaper.ExecProcess(command)
  local pipe = io.popen(command .. " 2>&1")
  local output = pipe:read("a")
  local _, _, code = pipe:close()
  return code .. "\\n" .. output
end
function reaper.ShowMessageBox(message) print("message: " .. message) end
function reaper.InsertMedia(path, mode) print("insert: " .. path) end
function reaper.Undo_BeginBlock() end
function reaper.Undo_EndBlock() end
dofile(os.getenv("SCRIPT"))
"""


def run(query: str, server: str, folder: Path, repo: Path) -> str:
    lua = shutil.which("lua5.4") or shutil.which("lua")
    if lua is None or shutil.which("curl") is None:
        pytest.skip("Lua or curl is not installed")
    script = repo / "integrations" / "reaper" / "finelap_insert_moment.lua"
    told = {"QUERY": query, "PROJECT": str(folder), "SCRIPT": str(script), "FINELAP_SERVER": server}
    done = subprocess.run(
        [lua, "-e", _REAPER], env={**os.environ, **told}, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_the_best_moment_is_inserted(small_checkpoint: Path, tmp_path: Path, repo_dir: Path) -> None:
    with Server() as server:
        assert run("rain", server.address, tmp_path, repo_dir) == "message: The library has no such sound.\n"
        sound = next(SOUNDS.glob("glass-*.ogg"))
        server.post("/clips", files={"files": (sound.name, sound.read_bytes())}).raise_for_status()
        printed = run('breaking "glass" $(touch hacked) `x` \\', server.address, tmp_path, repo_dir)
        assert printed.startswith("insert: ") and not (tmp_path / "hacked").exists()
        path = Path(printed.removeprefix("insert: ").strip())
        assert soundfile.info(path).samplerate == soundfile.info(sound).samplerate
        assert httpx.get(f"{server.address}/health/live").status_code == 200
    assert "message: " in run("rain", server.address, tmp_path, repo_dir)
