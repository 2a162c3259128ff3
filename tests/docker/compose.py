"""Reads docker-compose.yml as `docker compose` does: substitutes variables and selects profiles. Supports what we use.

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
    """A required variable is not set; the message comes from the file."""


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """Substitutes the variables in a tree of plain types. Raises Unset, or ValueError for unsupported syntax."""
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
    """The file with variables substituted and only the services of these profiles."""
    whole = interpolate(yaml.safe_load(path.read_text(encoding="utf-8")), variables)
    wanted = set(profiles)
    chosen = {
        name: {key: value for key, value in service.items() if key != "profiles"}
        for name, service in whole["services"].items()
        if not service.get("profiles") or wanted & set(service["profiles"])
    }
    return {key: value for key, value in whole.items() if not key.startswith("x-")} | {"services": chosen}


def read_env(path: Path) -> dict[str, str]:
    """The variables in an env file."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
