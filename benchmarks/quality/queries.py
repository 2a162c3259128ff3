"""What people type first: the page's suggestions and other queries over the demo library, and what came first.

The names of the demo sounds say what they are, so the service finds many of them by name. `by_sound` shows what the
model alone answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from benchmarks.quality.recordings import add

SUGGESTIONS = ("dog barking", "rain on a roof", "glass breaking", "footsteps", "thunder", "a door slams")
TYPED = (
    "horse", "whoosh", "UI click", "rain", "wind", "explosion", "applause", "siren", "cat meowing", "baby crying",
    "phone ringing", "engine starting", "birds in a forest", "sci-fi laser", "sword fight", "crowd cheering",
    "typing on a keyboard", "clock ticking", "gun shot", "water drop", "magic sparkle", "coin pickup", "drum roll",
    "metal impact", "dark ambience", "door creak", "helicopter", "car passing by", "footsetps", "asdfgh",
)  # fmt: skip


def first_hits(client: TestClient, sounds: list[Path]) -> list[dict[str, Any]]:
    """A row for each query over a library of these files: the number of matches, the first hit by words and sound, and
    by sound alone."""
    add(client, [(sound.name, sound.read_bytes()) for sound in sounds])
    rows = []
    for query in (*SUGGESTIONS, *TYPED):
        found = _search(client, query, "hybrid")
        by_sound = _search(client, query, "semantic")
        hit = found["hits"][0]
        rows.append(
            {
                "query": query,
                "corrected": found["did_you_mean"] or "",
                "matches": found["matches"],
                "first": _name(hit) + ("" if hit["match"] is not False else " (no match)"),
                "score": round(hit["score"], 2),
                "first by sound": _name(by_sound["hits"][0]),
            }
        )
    return rows


def _search(client: TestClient, query: str, mode: str) -> dict[str, Any]:
    answer = client.post("/search", json={"query": query, "k": 1, "mode": mode})
    answer.raise_for_status()
    return dict(answer.json())


def _name(hit: dict[str, Any]) -> str:
    """A hit's file name without its hash and suffix: "dog-barking-2b3a93.ogg" → "dog barking"."""
    return str(hit["clip"]["filename"]).rpartition("-")[0].replace("-", " ")
