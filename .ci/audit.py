"""Audits the packages of an environment: writes an SBOM to build/sbom.json and reports known vulnerabilities.

    python .ci/audit.py TOOLS PYTHON     # TOOLS: a folder with the commands pip-audit and cyclonedx-py

Exits with 1 if a package has a known vulnerability. If the vulnerability service cannot be reached, or does not know
the packages, prints that and exits with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BUILD = Path(__file__).resolve().parent.parent / "build"
TIMEOUT = 240  # seconds


def main() -> int:
    tools, python = Path(sys.argv[1]), sys.argv[2]
    BUILD.mkdir(exist_ok=True)
    _sbom(tools, python)
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], **_text, check=True
    )
    command = [tools / "pip-audit", "--path", found.stdout.strip(), "--skip-editable", "--progress-spinner", "off"]
    try:
        done = subprocess.run([*command, "--timeout", "10", "-f", "json"], **_text, timeout=TIMEOUT)
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        print("The vulnerability service could not be reached: nothing was audited.", file=sys.stderr)
        return 0
    audited = [package for package in packages if "skip_reason" not in package]
    print(f"{len(audited)} packages audited, {len(packages) - len(audited)} skipped.")
    known = [(package, fault) for package in audited for fault in package["vulns"]]
    for package, fault in known:
        fixed = ", ".join(fault["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {fault['id']}, fixed in {fixed}")
    return int(bool(known))


def _sbom(tools: Path, python: str) -> None:
    target = BUILD / "sbom.json"
    command = [tools / "cyclonedx-py", "environment", "--output-reproducible", "--of", "JSON", "-o", target, python]
    subprocess.run(command, **_text, check=True, timeout=TIMEOUT)
    components = json.loads(target.read_text(encoding="utf-8"))["components"]
    print(f"build/sbom.json (CycloneDX): {len(components)} components")


_text: dict[str, Any] = {"capture_output": True, "text": True}

if __name__ == "__main__":
    sys.exit(main())
