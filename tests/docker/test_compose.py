"""docker-compose.yml, profile by profile: valid, pinned, limited, not exposed, and consistent with the service."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli.serve import _CLOSING
from app.settings import Settings
from tests.docker.compose import Unset, interpolate, read, read_env

PROFILES: dict[str, set[str]] = {
    "": set(),  # `docker compose up`
    "gpu": {"finelap-gpu"},
    "listen": {"listen"},
    "scale": {"replica", "proxy", "milvus", "milvus-volume", "etcd", "minio"},
}
ALWAYS = {"finelap", "prometheus", "grafana"}
OURS = ("finelap", "finelap-gpu", "replica")
INSTEAD = ("gpu", "scale")  # profiles that run in place of the service
SECRETS = {"GRAFANA_PASSWORD": "grafana-secret", "MINIO_PASSWORD": "minio-secret", "FINELAP_API_KEY": "key-1"}


def services(repo: Path, profile: str, **variables: str) -> dict[str, Any]:
    chosen: dict[str, Any] = read(repo / "docker-compose.yml", SECRETS | variables, [profile])["services"]
    return chosen


@pytest.fixture(scope="module")
def every(repo_dir: Path) -> dict[str, Any]:
    """All services of all profiles."""
    found = read(repo_dir / "docker-compose.yml", SECRETS, PROFILES)["services"]
    assert len(found) == sum(map(len, PROFILES.values())) + len(ALWAYS)
    return dict(found)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_are_valid_and_contain_their_services(repo_dir: Path, profile: str) -> None:
    compose_spec = pytest.importorskip("compose_spec")
    project = read(repo_dir / "docker-compose.yml", SECRETS, [profile])
    assert set(project["services"]) == PROFILES[profile] | ALWAYS
    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(project))
    assert set(parsed.services) == set(project["services"])
    broken = project | {"services": project["services"] | {"grafana": {"image": "a", "memory": "1g"}}}
    with pytest.raises(ValueError, match="memory"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(broken))


def test_referenced_files_and_volumes_exist(repo_dir: Path) -> None:
    for profile in PROFILES:
        project = read(repo_dir / "docker-compose.yml", SECRETS, [profile])
        for name, service in project["services"].items():
            assert set(service.get("depends_on", {})) <= set(project["services"]), (profile, name)
            networks = service.get("networks", ["default"])
            assert set(networks) <= set(project["networks"]), (profile, name)
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                assert (repo_dir / source).exists() if source.startswith("./") else source in project["volumes"]
            for condition in service.get("depends_on", {}).values():
                assert condition["condition"] in ("service_healthy", "service_completed_successfully")


def test_profiles_reuse_the_port_of_the_omitted_service(repo_dir: Path) -> None:
    for profile in PROFILES:
        published = {
            name: [port.rpartition(":")[0] for port in service.get("ports", [])]
            for name, service in services(repo_dir, profile, FINELAP_PORT="8123").items()
            if not (profile in INSTEAD and name == "finelap")  # --scale finelap=0
        }
        ports = [port for some in published.values() for port in some]
        assert ports.count("127.0.0.1:8123") == 1 and len(set(ports)) == len(ports)
        assert all(port.startswith("127.0.0.1:") for port in ports)  # until FINELAP_BIND says otherwise
    wide = services(repo_dir, "", FINELAP_BIND="0.0.0.0")
    assert wide["finelap"]["ports"] == ["0.0.0.0:8080:8080"]
    assert all(port.startswith("127.0.0.1:") for name in ALWAYS - {"finelap"} for port in wide[name]["ports"])


def test_images_are_pinned_and_limited(every: dict[str, Any]) -> None:
    for name, service in every.items():
        tag = service["image"].rpartition(":")[2]
        assert name in (*OURS, "listen") or re.search(r"\d+\.\d+\.\d+|\d{4}-\d\d-\d\dT", tag), service["image"]
        limits = service["deploy"]["resources"]["limits"]
        assert float(limits["cpus"]) > 0 and re.fullmatch(r"\d+[mg]", limits["memory"]), name
        assert "no-new-privileges:true" in service["security_opt"] and not service.get("privileged")
        assert "healthcheck" in service or name in (*OURS, "milvus-volume"), name  # the image has one; it ends


@pytest.mark.parametrize("name", OURS)
def test_service_containers_are_restricted(every: dict[str, Any], name: str) -> None:
    service = every[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]
    targets = {volume.split(":")[1] for volume in service["volumes"]} | {t.split(":")[0] for t in service["tmpfs"]}
    assert targets == {"/data", "/models", "/scratch", "/tmp"}
    environment = service["environment"]
    known = {f"FINELAP_{field.upper()}" for field in Settings.model_fields}
    assert {key for key in environment if key.startswith("FINELAP_")} <= known
    assert "user" not in service and "FINELAP_HOST" not in environment  # the image's


@pytest.mark.parametrize("name", OURS)
def test_stop_grace_period_is_sufficient(every: dict[str, Any], name: str) -> None:
    grace = int(every[name]["stop_grace_period"].removesuffix("s"))
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    assert float(every[name]["environment"]["FINELAP_STOP_GRACE_S"]) == settings.stop_grace_s
    assert grace >= settings.stop_grace_s + _CLOSING + 5
    assert int(every["proxy"]["stop_grace_period"].removesuffix("s")) >= grace


def test_images_can_be_pulled_instead_of_built(repo_dir: Path, every: dict[str, Any]) -> None:
    assert {every[name]["image"] for name in ("finelap", "replica")} == {"finelap:cpu"}
    assert every["finelap-gpu"]["image"] == "finelap:cuda"
    assert all(every[name]["pull_policy"] == "missing" and every[name]["build"] for name in OURS)
    named = {"FINELAP_IMAGE": "registry.example:5000/finelap:1-cpu", "FINELAP_IMAGE_CUDA": "registry.example/f:1-cuda"}
    for profile, name, variable in (("", "finelap", "FINELAP_IMAGE"), ("scale", "replica", "FINELAP_IMAGE"),
                                    ("gpu", "finelap-gpu", "FINELAP_IMAGE_CUDA")):  # fmt: skip
        assert services(repo_dir, profile, **named)[name]["image"] == named[variable]


def test_gpu_and_scale(every: dict[str, Any]) -> None:
    (device,) = every["finelap-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert every["finelap-gpu"]["build"]["args"] == {"FLAVOUR": "cuda"} and "args" not in every["finelap"]["build"]
    replica = every["replica"]
    assert replica["deploy"]["replicas"] == 2 and "shared:/data" in replica["volumes"] and "ports" not in replica
    assert Settings(index_url=replica["environment"]["FINELAP_INDEX_URL"], _env_file=None)  # type: ignore[call-arg]
    assert {name for name, service in every.items() if "store" in service.get("networks", ())} == {
        "replica",
        "milvus",
        "etcd",
        "minio",
    }
    aliases = [every[name]["networks"]["default"]["aliases"] for name in ("finelap-gpu", "replica")]
    assert aliases == [["finelap"], ["finelap"]]  # the name under which Prometheus and the proxy look for it


def test_secrets_come_from_env(repo_dir: Path, every: dict[str, Any]) -> None:
    text = (repo_dir / "docker-compose.yml").read_text(encoding="utf-8")
    assert not [secret for secret in SECRETS.values() if secret in text]
    # without any it starts all the same, open to this machine alone
    plain = read(repo_dir / "docker-compose.yml", {}, [])["services"]
    assert plain["finelap"]["environment"]["FINELAP_API_KEYS"] == ""
    assert plain["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "admin"
    grafana = every["grafana"]["environment"]
    assert grafana["GF_SECURITY_ADMIN_PASSWORD"] == SECRETS["GRAFANA_PASSWORD"]
    assert grafana["GF_AUTH_ANONYMOUS_ENABLED"] == "false" and grafana["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert every["minio"]["environment"]["MINIO_ROOT_PASSWORD"] == SECRETS["MINIO_PASSWORD"]
    assert every["milvus"]["environment"]["MINIO_SECRET_ACCESS_KEY"] == SECRETS["MINIO_PASSWORD"]


def test_example_env_lists_all_variables_without_secrets(repo_dir: Path) -> None:
    example = read_env(repo_dir / "docker" / "example.env")
    text = (repo_dir / "docker-compose.yml").read_text(encoding="utf-8")
    assert set(example) <= set(re.findall(r"\$\{([A-Z_]+)", text))
    assert not any(example[name] for name in (*SECRETS, "FINELAP_API_KEYS"))
    ignored = subprocess.run(
        ["git", "check-ignore", "--quiet", ".env"], cwd=repo_dir, capture_output=True, check=False
    ).returncode
    assert ignored in (0, 128)  # 128: this is no git checkout


def test_listening_is_a_container_of_its_own(every: dict[str, Any], tmp_path: Path) -> None:
    """Runs the shell line that turns its variables into arguments."""
    service = every["listen"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and "ports" not in service
    assert service["image"] == every["finelap"]["image"] and "/data" not in str(service["volumes"])
    assert service["environment"]["FINELAP_SERVER"] == "http://finelap:8080"
    program = tmp_path / "finelap"
    program.write_text('#!/bin/sh\nfor each in "$@"; do echo "$each"; done\n')
    program.chmod(0o755)
    variables = {
        "LISTEN_SOURCES": "http://radio/a rtsp://camera/*",
        "LISTEN_PHRASES": "dog barking,breaking glass",
        "LISTEN_WEBHOOK": "https://example.org/hook?a=1",
        "LISTEN_KEEP": "2",
        "PATH": f"{tmp_path}:/usr/bin:/bin",
    }
    command = [*service["entrypoint"], *service["command"]]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    given = done.stdout.splitlines()
    assert given[:3] == ["listen", "http://radio/a", "rtsp://camera/*"]
    for option, value in (("-p", "dog barking"), ("--webhook", variables["LISTEN_WEBHOOK"]), ("--keep", "2")):
        assert value in [given[at + 1] for at, each in enumerate(given) if each == option]
    plain = subprocess.run(
        command, env=variables | {"LISTEN_WEBHOOK": "", "LISTEN_KEEP": ""}, capture_output=True, text=True
    )
    assert "--webhook" not in plain.stdout and "--keep" not in plain.stdout


def test_prometheus_receives_its_key(every: dict[str, Any], tmp_path: Path) -> None:
    """Runs the shell line that writes the key."""
    command = every["prometheus"]["entrypoint"]
    assert command[:2] == ["/bin/sh", "-ec"] and every["prometheus"]["environment"]["FINELAP_API_KEY"] == "key-1"
    script = command[2].replace("/tmp/", f"{tmp_path}/").replace("/bin/prometheus", "echo")
    arguments = [*command[3:], *every["prometheus"]["command"]]
    done = subprocess.run(
        ["/bin/sh", "-ec", script, *arguments], env={"FINELAP_API_KEY": "key-1 $x"}, capture_output=True, text=True
    )
    assert done.stdout.split() == every["prometheus"]["command"], done.stderr
    assert (tmp_path / "finelap-key").read_text() == "key-1 $x"
    assert (tmp_path / "finelap-key").stat().st_mode & 0o077 == 0


def test_variables_are_substituted_as_compose_does() -> None:
    given = {"A": "1", "EMPTY": ""}
    assert interpolate("${A} ${B:-two} ${EMPTY:-three} $$A ${B}", given) == "1 two three $A "
    assert interpolate({"a": ["${A}", 2, None]}, given) == {"a": ["1", 2, None]}
    with pytest.raises(Unset, match="say B"):
        interpolate("${EMPTY:?say B}", given)
    with pytest.raises(ValueError, match="no variable"):
        interpolate("$A", given)
