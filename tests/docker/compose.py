"""docker-compose.yml as `docker compose` reads it: variables put in, profiles chosen. Knows what we use of the form.

${NAME}  ${NAME:-else}  ${NAME:?message}  $$
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Z_][A-Z0-9_]*)(?:(?P<how>:[-?])(?P<rest>[^}]*))?\}|(?P<bad>.|$))"
)


class Unset(Exception):
    """A variable that has to be set is not; the message is the file's."""


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """The value, a tree of plain types, with its variables put in. Raises Unset, ValueError for what we do not use."""
    if isinstance(value, dict):
        return {key: interpolate(one, variables) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolate(one, variables) for one in value]
    if not isinstance(value, str):
        return value

    def put(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        if found["name"] is None:
            raise ValueError(f"{value!r} has a $ that is no variable")
        given = variables.get(found["name"], "")
        if given or found["how"] is None:
            return given
        if found["how"] == ":?":
            raise Unset(found["rest"])
        return str(found["rest"])

    return _VARIABLE.sub(put, value)


def read(path: Path, variables: Mapping[str, str], profiles: Iterable[str]) -> dict[str, Any]:
    """The file with its variables put in and the services of these profiles, as one that needs neither."""
    whole = interpolate(yaml.safe_load(path.read_text(encoding="utf-8")), variables)
    wanted = set(profiles)
    chosen = {
        name: {key: value for key, value in service.items() if key != "profiles"}
        for name, service in whole["services"].items()
        if not service.get("profiles") or wanted & set(service["profiles"])
    }
    return {key: value for key, value in whole.items() if not key.startswith("x-")} | {"services": chosen}


def read_env(path: Path) -> dict[str, str]:
    """The variables of an env file."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
