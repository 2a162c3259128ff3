"""The documentation tests detect wrong responses, missing markers and failing commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import Block, commands, read_blocks, session, without_code
from tests.docs.compare import last_json, same_shape, same_text, same_values
from tests.docs.runner import Reader

PAGE = """# A page

```sh
echo one   # says one
```

<!-- not run: because of this -->
```sh
rm -rf everything
```

Prose with `a [link](nowhere.md) in code`.

<!-- fails -->
```console
$ false
```

- an item

  <!-- exact -->
  ```json
  {"a": 1}
  ```
"""


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """A runner without a service."""
    return Reader(tmp_path, "http://127.0.0.1:1", {})


def block(language: str, text: str, **markers: object) -> Block:
    return Block("page.md", 3, language, text, **markers)  # type: ignore[arg-type]


def test_markers_apply_to_the_next_block(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    shell, unrun, failing, exact = read_blocks(tmp_path / "page.md", tmp_path)
    assert (shell.language, shell.line, shell.reason, shell.fails) == ("sh", 4, None, False)
    assert unrun.reason == "because of this" and failing.fails and exact.exact
    assert exact.text == '{"a": 1}\n'
    assert "nowhere" not in without_code(PAGE) and "everything" not in without_code(PAGE)


def test_commands_and_sessions() -> None:
    assert commands("a \\\n  b  # why\n\n# nothing\nc '#1'\n") == ["a b", "c '#1'"]
    assert session("$ a\nx\ny\n$ b \\\n>  c\n") == [("a", "x\ny\n"), ("b \\\n c", "")]


@pytest.mark.parametrize(
    ("shown", "given", "shape", "values"),
    [
        ({"a": 1.0}, {"a": 1.001}, True, True),
        ({"a": 1.0}, {"a": 1.5}, True, False),
        ({"a": "…"}, {"a": [2]}, True, True),
        ({"a": 1}, {"a": 1, "b": 2}, False, False),
        ({"a": 1, "…": "…"}, {"a": 1, "b": 2}, True, True),
        ({"a": "x"}, {"a": "y"}, True, False),
        ({"a": "x"}, {"a": 2}, False, False),
        ({"hits": [1]}, {"hits": []}, False, False),
        ({"hits": [1, "…"]}, {"hits": [1, 2, 3]}, True, True),
        ({"hits": [1]}, {"hits": [1, 2]}, True, False),
        (True, 1, False, False),
    ],
)
def test_json_comparison(shown: object, given: object, shape: bool, values: bool) -> None:
    for compare, fits in ((same_shape, shape), (same_values, values)):
        if fits:
            compare(shown, given)
        else:
            with pytest.raises(AssertionError):
                compare(shown, given)


def test_last_json_value_of_output() -> None:
    assert last_json('{"a": 1}{"b": 2}') == {"b": 2}
    assert last_json('# words\n1.5\n{"c": 3}') == {"c": 3}
    assert last_json('{\n "d": 4\n}\n') == {"d": 4}
    with pytest.raises(ValueError):
        last_json("not json")


def test_text_comparison() -> None:
    printed = "score  file\n 0.28  dog.wav\n 0.12  cat.wav\n2 files in 0.31 s\n"
    same_text("score file\n0.28 dog.wav\n…\n2 files in …\n", printed)
    same_text("score file\n0.27 dog.wav\n0.12 cat.wav\n2 files in … s", printed)
    for wrong in ("score file\n…\n3 files in …", "score file\n0.38 dog.wav\n…", "score file\n…\n0.28 cat.wav\n…", ""):
        with pytest.raises(AssertionError):
            same_text(wrong, printed)


def test_failing_commands_are_detected(reader: Reader) -> None:
    reader.read(block("sh", "A=kept\n"))
    reader.read(block("console", "$ echo $A\nkept\n"))
    reader.read(block("sh", "false", fails=True))
    wrong = [
        block("sh", "false\ntrue"),
        block("sh", "false | true"),
        block("sh", "true", fails=True),
        block("sh", "curl http://127.0.0.1:8080/info"),
        block("console", "$ echo $A\nlost\n"),
        block("ruby", "puts 1"),
    ]
    for each in wrong:
        with pytest.raises(AssertionError):
            reader.read(each)


def test_python_blocks_share_names_and_report_page_lines(reader: Reader) -> None:
    reader.read(block("python", "x = 1\n"))
    reader.read(block("python", "y = x + 1\n"))
    assert reader.names["y"] == 2
    with pytest.raises(NameError) as wrong:
        reader.read(block("python", "ok = 1\nz = unknown\n"))
    frame = wrong.traceback[-1]
    assert (str(frame.frame.code.raw.co_filename), frame.lineno + 1) == ("page.md", 4)
