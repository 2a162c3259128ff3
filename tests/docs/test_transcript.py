"""Has the conversation in docs/guide/agents.md with a real service and compares it with the page.

With FINELAP_WRITE_TRANSCRIPT=1 the results on the page are replaced by those of this run.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from mcp.client import Client

from benchmarks.common import REPO, Server
from tests.docs.compare import same_shape

PAGE = REPO / "docs" / "guide" / "agents.md"
_BLOCK = re.compile(r"(?<=<!-- transcript -->\n```\n).*?(?=```)", re.DOTALL)
_LISTED = 2  # items of a list that are shown
_SHORT = 60  # characters of a string that are shown


async def test_the_transcript(service: Server) -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = _BLOCK.search(page)
    assert found is not None
    shown = dict(re.findall(r"^→ (.+)\n(?:← (.+)\n)?", found[0], re.MULTILINE))
    assert len(shown) >= 6
    written, names = "", {}
    async with Client(f"{service.address}/mcp") as client:
        for call, expected in shown.items():
            tool, _, text = call.partition(" ")
            for clip_id, name in names.items():
                text = text.replace(f'"{name}"', f'"{clip_id}"')
            result = await client.call_tool(tool, json.loads(text))
            given = shorten(told(result), names)
            written += f"→ {call}\n← {json.dumps(given, ensure_ascii=False)}\n"
            if expected:
                same_shape(json.loads(expected), given, call)
    if os.environ.get("FINELAP_WRITE_TRANSCRIPT"):
        PAGE.write_text(page.replace(found[0], written), encoding="utf-8")
    else:
        assert all(shown.values()), "results are missing: run with FINELAP_WRITE_TRANSCRIPT=1"


def told(result: Any) -> Any:
    """What a tool returned, as one JSON value."""
    if result.is_error:
        return {"error": result.content[0].text}
    if result.structured_content is not None:
        return result.structured_content
    texts = [json.loads(part.text) for part in result.content if part.type == "text"]
    sounds = [{"audio": part.mime_type, "bytes": len(part.data)} for part in result.content if part.type == "audio"]
    return texts + sounds


def shorten(value: Any, names: dict[str, str]) -> Any:
    """The value with ids as CLIP-1, CLIP-2, …, and long lists, texts and metadata shortened."""
    if isinstance(value, dict):
        if "clip_id" in value:
            names.setdefault(value["clip_id"], f"CLIP-{len(names) + 1}")
        return {
            key: {name: shorten(one, names) for name, one in list(item.items())[:3]}
            if key == "metadata"
            else names[item]
            if key == "clip_id"
            else "…"
            if key == "url"
            else shorten(item, names)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [shorten(item, names) for item in value[:_LISTED]]
    if isinstance(value, float):
        return round(value, 3)
    return value[:_SHORT] + " …" if isinstance(value, str) and len(value) > 2 * _SHORT else value
