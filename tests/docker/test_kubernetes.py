"""The Kubernetes manifests: rendered by kustomize, valid for the API, restricted, and consistent with the service."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli.main import _parser
from app.cli.serve import _CLOSING
from app.settings import FAISS, Settings
from index import parse_milvus_url

KUBERNETES = Path(__file__).resolve().parent.parent.parent / "docker" / "kubernetes"
OVERLAYS = ("single", "scale", "scale-hpa", "gpu")
COMPONENTS = ("monitoring", "ingress", "gateway")
VERSIONS = ("1.31", "1.34")  # the oldest and the newest that the manifests are checked for
WRITTEN = {"/data", "/models", "/scratch", "/tmp"}  # as in docker-compose.yml
# Policies that we don't follow, and why
IGNORED = {
    "CKV_K8S_43": "the digest of the image is known to the registry of whoever builds it",
    "CKV_K8S_15": "a tag that never changes its content needs no pull at every start",
    "CKV_K8S_35": "the service reads its keys from the environment",
}


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The rendered resources of a kustomization."""
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            return [resource for resource in yaml.safe_load_all(done.stdout) if resource]
    pytest.skip("neither kubectl nor kustomize is installed")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """The resources of an overlay, of `ingest`, or of `all`: the overlay `scale` with every optional component."""
    known: dict[str, list[dict[str, Any]]] = {}

    def render(name: str) -> list[dict[str, Any]]:
        if name not in known:
            folder = KUBERNETES / ("jobs" if name == "ingest" else "overlays") / name
            if name == "all":
                folder = tmp_path_factory.mktemp("all")
                relative = [os.path.relpath(KUBERNETES / "components" / one, folder) for one in COMPONENTS]
                overlay = os.path.relpath(KUBERNETES / "overlays" / "scale", folder)
                (folder / "kustomization.yaml").write_text(
                    yaml.safe_dump({"resources": [overlay], "components": relative})
                )
            known[name] = kustomize(folder)
        return known[name]

    return render


def one(resources: list[dict[str, Any]], kind: str, name: str = "finelap") -> dict[str, Any]:
    """The resource of this kind and name."""
    (found,) = [r for r in resources if r["kind"] == kind and r["metadata"]["name"] == name]
    return found


def workload(resources: list[dict[str, Any]]) -> dict[str, Any]:
    """The StatefulSet or Deployment of the service."""
    (found,) = [resource for resource in resources if resource["kind"] in ("StatefulSet", "Deployment")]
    return found


def pod(resources: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = workload(resources)["spec"]["template"]["spec"]
    return spec


def environment(resources: list[dict[str, Any]]) -> dict[str, str]:
    """The settings that reach the container, without secrets."""
    (container,) = pod(resources)["containers"]
    variables: dict[str, str] = {}
    for source in container["envFrom"]:
        if "configMapRef" in source:
            variables |= one(resources, "ConfigMap", source["configMapRef"]["name"])["data"]
        else:
            assert source["secretRef"] == {"name": "finelap-keys", "optional": True}
    return variables | {entry["name"]: entry.get("value", "") for entry in container["env"]}


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["single", "gpu", "scale-hpa", "ingest", "all"])
def test_manifests_match_the_schemas_of_the_api(
    rendered: Callable[[str], list[dict[str, Any]]], name: str, version: str
) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    custom = set()
    for resource in rendered(name):
        try:
            validate.validate(resource, version, strict=True)
        except validate.SchemaNotFoundError:
            custom.add(resource["kind"])
    assert custom <= {"ScaledObject", "ServiceMonitor", "PrometheusRule", "HTTPRoute"}
    broken = json.loads(json.dumps(rendered(name)[-1])) | {"replicas": 3}
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, version, strict=True)


@pytest.mark.slow
def test_manifests_follow_policies(
    rendered: Callable[[str], list[dict[str, Any]]], tmp_path: Path, repo_dir: Path
) -> None:
    """checkov's rules for Kubernetes, in an environment of its own because of its many dependencies."""
    checkov = shutil.which("checkov", path=str(repo_dir / ".venv/checkov/bin")) or shutil.which("checkov")
    if checkov is None:
        pytest.skip("checkov is not installed: make .venv/.checkov")
    for name in (*OVERLAYS, "ingest"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(rendered(name)))
    command = [checkov, "-d", tmp_path, "--framework", "kubernetes", "--skip-download", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    failed = {(check["check_id"], check["check_name"]) for check in report["results"]["failed_checks"]}
    assert report["summary"]["passed"] > 80 * len(OVERLAYS)
    assert {number for number, _ in failed} == set(IGNORED), sorted(failed)


@pytest.mark.parametrize("name", [*OVERLAYS, "ingest"])
def test_pods_are_restricted(rendered: Callable[[str], list[dict[str, Any]]], name: str) -> None:
    resources = rendered(name)
    spec = one(resources, "Job", "finelap-ingest")["spec"]["template"]["spec"] if name == "ingest" else pod(resources)
    assert spec["automountServiceAccountToken"] is False and spec["serviceAccountName"] == "finelap"
    assert spec["enableServiceLinks"] is False  # FINELAP_PORT=tcp://… would be no port
    context = spec["securityContext"]
    assert context["runAsNonRoot"] and (context["runAsUser"], context["fsGroup"]) == (10001, 10001)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in spec["volumes"]}
    assert set(mounted.values()) == ({"/sounds", "/cache", "/scratch"} if name == "ingest" else WRITTEN)
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    limits = [volume["emptyDir"].get("sizeLimit") for volume in spec["volumes"] if "emptyDir" in volume]
    assert all(limits)


@pytest.mark.parametrize("name", OVERLAYS)
def test_settings_are_the_services(
    rendered: Callable[[str], list[dict[str, Any]]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = environment(rendered(name))
    ours = {key for key in variables if key.startswith("FINELAP_")}
    assert ours <= {f"FINELAP_{field.upper()}" for field in Settings.model_fields}
    for key in ours:
        monkeypatch.setenv(key, variables[key])
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    assert settings.port == 8080 and settings.log_format == "json"
    if name.startswith("scale"):
        assert parse_milvus_url(settings.index_url) and "files=s3://" in settings.index_url
    else:
        assert settings.index_url == FAISS
    assert settings.device == ("cuda" if name == "gpu" else "auto")


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_and_termination(rendered: Callable[[str], list[dict[str, Any]]], name: str) -> None:
    spec, variables = pod(rendered(name)), environment(rendered(name))
    (container,) = spec["containers"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/health/live", "readiness": "/health/ready", "liveness": "/health/live"}
    assert container["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    wanted = pause + float(variables["FINELAP_STOP_GRACE_S"]) + _CLOSING
    assert wanted + 5 <= spec["terminationGracePeriodSeconds"] <= wanted + 60


@pytest.mark.parametrize("name", OVERLAYS)
def test_labels_select_the_pods(rendered: Callable[[str], list[dict[str, Any]]], name: str) -> None:
    resources = rendered(name)
    labels = workload(resources)["spec"]["template"]["metadata"]["labels"]
    assert selects(workload(resources)["spec"]["selector"]["matchLabels"], labels)
    service = one(resources, "Service")
    assert selects(service["spec"]["selector"], labels) and service["spec"]["ports"][0]["targetPort"] == "http"
    policies = [resource for resource in resources if resource["kind"] == "NetworkPolicy"]
    assert policies and all(selects(p["spec"]["podSelector"]["matchLabels"], labels) for p in policies)
    assert not [rule for p in policies for rule in p["spec"].get("ingress", []) if not rule.get("from")]
    for budget in (resource for resource in resources if resource["kind"] == "PodDisruptionBudget"):
        assert selects(budget["spec"]["selector"]["matchLabels"], labels)
    image = pod(resources)["containers"][0]["image"]
    assert image == ("finelap:cuda" if name == "gpu" else "finelap:cpu")


@pytest.mark.parametrize("name", ["single", "gpu"])
def test_single_has_one_replica_and_refuses_more(rendered: Callable[[str], list[dict[str, Any]]], name: str) -> None:
    resources = rendered(name)
    assert workload(resources)["kind"] == "StatefulSet" and workload(resources)["spec"]["replicas"] == 1
    assert "volumeClaimTemplates" not in workload(resources)["spec"]  # each replica would get a library of its own
    claim = one(resources, "PersistentVolumeClaim", "finelap-data")
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    policy = one(resources, "ValidatingAdmissionPolicy", "finelap-one-replica")["spec"]
    binding = one(resources, "ValidatingAdmissionPolicyBinding", "finelap-one-replica")["spec"]
    assert binding == {"policyName": "finelap-one-replica", "validationActions": ["Deny"]}
    (rule,) = policy["matchConstraints"]["resourceRules"]
    assert set(rule["resources"]) == {"statefulsets", "statefulsets/scale"}  # `kubectl scale` changes the latter
    # the expressions, on this StatefulSet and on what `kubectl scale` sends
    scale = {"metadata": workload(resources)["metadata"], "spec": {"replicas": 2}}
    assert admitted(policy, workload(resources)) and not admitted(policy, scale)
    assert admitted(policy, {"metadata": {"name": "another"}, "spec": {"replicas": 2}})


def admitted(policy: dict[str, Any], resource: dict[str, Any]) -> bool:
    """What the API server answers to a resource: CEL expressions, evaluated."""
    celpy = pytest.importorskip("celpy")
    environment = celpy.Environment()

    def value(expression: str) -> bool:
        program = environment.program(environment.compile(expression))
        return bool(program.evaluate({"object": celpy.json_to_cel(resource)}))

    if not all(value(condition["expression"]) for condition in policy["matchConditions"]):
        return True
    return all(value(validation["expression"]) for validation in policy["validations"])


def test_gpu_pods_ask_for_one(rendered: Callable[[str], list[dict[str, Any]]]) -> None:
    (container,) = pod(rendered("gpu"))["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {entry["name"] for entry in container["env"]} >= {"FINELAP_DEVICE", "OMP_NUM_THREADS", "FINELAP_PORT"}


def test_scale_rolls_over_without_losing_a_replica(rendered: Callable[[str], list[dict[str, Any]]]) -> None:
    spec = workload(rendered("scale"))["spec"]
    assert "replicas" not in spec  # an apply must not undo the autoscaler
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert one(rendered("scale"), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_autoscalers_target_the_deployment(rendered: Callable[[str], list[dict[str, Any]]]) -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "finelap"}
    scaled = one(rendered("scale"), "ScaledObject")["spec"]
    fallback = one(rendered("scale-hpa"), "HorizontalPodAutoscaler")["spec"]
    assert scaled["scaleTargetRef"] == fallback["scaleTargetRef"] == target
    kinds = [{resource["kind"] for resource in rendered(name)} for name in ("scale", "scale-hpa")]
    assert "HorizontalPodAutoscaler" not in kinds[0] and "ScaledObject" not in kinds[1]  # two would fight
    assert 2 <= scaled["minReplicaCount"] == fallback["minReplicas"]
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == fallback["behavior"]
    backlog, cpu = scaled["triggers"]
    assert "finelap_queue_seconds" in backlog["metadata"]["query"] and backlog["metadata"]["threshold"] == "240"
    (metric,) = fallback["metrics"]
    assert cpu["metadata"]["value"] == str(metric["resource"]["target"]["averageUtilization"])


def test_the_triggers_query_is_valid(rendered: Callable[[str], list[dict[str, Any]]], tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: Debian has it in the package prometheus")
    trigger = one(rendered("scale"), "ScaledObject")["spec"]["triggers"][0]
    rules = {"groups": [{"name": "g", "rules": [{"record": "r", "expr": trigger["metadata"]["query"]}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    done = subprocess.run([promtool, "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_monitoring_is_that_of_compose(
    rendered: Callable[[str], list[dict[str, Any]]], repo_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = rendered("all")
    specification = importlib.util.spec_from_file_location("rules", KUBERNETES / "rules.py")
    assert specification is not None and specification.loader is not None
    rules = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(rules)
    assert rules.prometheus_rule() == rules.TARGET.read_text(encoding="utf-8"), "run docker/kubernetes/rules.py"
    groups = yaml.safe_load((repo_dir / "docker/prometheus/rules.yml").read_text(encoding="utf-8"))["groups"]
    assert one(resources, "PrometheusRule")["spec"]["groups"] == groups
    dashboard = (repo_dir / "docker/grafana/dashboards/finelap.json").read_text(encoding="utf-8")
    config = one(resources, "ConfigMap", "finelap-dashboard")
    assert config["data"] == {"finelap.json": dashboard} and config["metadata"]["labels"]["grafana_dashboard"] == "1"
    monitor, service = one(resources, "ServiceMonitor")["spec"], one(resources, "Service")
    assert selects(monitor["selector"]["matchLabels"], service["metadata"]["labels"])
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "finelap"  # the alerts ask for job="finelap"
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"] and endpoint["path"] == "/metrics"


def test_routes_lead_to_the_service(rendered: Callable[[str], list[dict[str, Any]]], repo_dir: Path) -> None:
    resources = rendered("all")
    ingress, route, service = (one(resources, kind) for kind in ("Ingress", "HTTPRoute", "Service"))
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "finelap", "port": {"name": service["spec"]["ports"][0]["name"]}}
    metrics, rest = route["spec"]["rules"]
    assert metrics["matches"][0]["path"]["value"] == "/metrics" and "backendRefs" not in metrics
    assert rest["backendRefs"] == [{"name": "finelap", "port": service["spec"]["ports"][0]["port"]}]
    # the limits and time-outs of the proxy of docker-compose.yml
    nginx = (repo_dir / "docker/nginx/nginx.conf").read_text(encoding="utf-8")
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = {key.removeprefix(prefix): value for key, value in ingress["metadata"]["annotations"].items()}
    assert f"proxy_read_timeout {annotations['proxy-read-timeout']}s" in nginx
    assert f"proxy_send_timeout {annotations['proxy-send-timeout']}s" in nginx
    assert f"proxy_next_upstream {annotations['proxy-next-upstream']};" in nginx
    assert f"rate={annotations['limit-rps']}r/s" in nginx
    assert f"limit_conn together {annotations['limit-connections']};" in nginx
    assert annotations["proxy-request-buffering"] == annotations["proxy-buffering"] == "off"
    assert rest["timeouts"]["request"] == f"{annotations['proxy-read-timeout']}s"


def test_the_ingest_job_covers_every_shard(rendered: Callable[[str], list[dict[str, Any]]]) -> None:
    job = one(rendered("ingest"), "Job", "finelap-ingest")["spec"]
    (container,) = job["template"]["spec"]["containers"]
    shards = []
    for index in range(job["completions"]):
        arguments = _parser().parse_args([part.replace("$(SHARD)", str(index)) for part in container["args"]])
        assert arguments.command == "ingest" and arguments.paths == [Path("/sounds")]
        shards.append(arguments.shard)
    assert shards == [(index, job["completions"]) for index in range(job["completions"])]
    assert job["completionMode"] == "Indexed" and job["parallelism"] <= job["completions"]
    (shard,) = [entry for entry in container["env"] if entry["name"] == "SHARD"]
    assert "job-completion-index" in shard["valueFrom"]["fieldRef"]["fieldPath"]
    service = one(rendered("scale"), "Service")
    assert arguments.server == f"http://{service['metadata']['name']}" and service["spec"]["ports"][0]["port"] == 80


def test_the_overlay_of_the_docs(repo_dir: Path, tmp_path: Path) -> None:
    page = (repo_dir / "docs/operations/kubernetes.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    there = os.path.relpath(KUBERNETES, tmp_path)
    content = text.replace("../../components", f"{there}/components").replace("../single", f"{there}/overlays/single")
    (tmp_path / "kustomization.yaml").write_text(content)
    resources = kustomize(tmp_path)
    ingress = one(resources, "Ingress")["spec"]
    assert ingress["rules"][0]["host"] == ingress["tls"][0]["hosts"][0] == "sounds.mycompany.example"
    assert pod(resources)["containers"][0]["image"] == "registry.example.org/finelap:1.0-cpu"
    assert {"ServiceMonitor", "PrometheusRule", "StatefulSet"} <= {resource["kind"] for resource in resources}
    assert all(resource["metadata"].get("namespace", "finelap") == "finelap" for resource in resources)


def _referenced(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("kustomization.yaml"):
        for entries in yaml.safe_load(file.read_text(encoding="utf-8")).values():
            for entry in entries if isinstance(entries, list) else []:
                if isinstance(entry, str) and not re.search(r"\s", entry):
                    yield (file.parent / entry).resolve()
                elif isinstance(entry, dict) and "path" in entry:
                    yield (file.parent / entry["path"]).resolve()


def test_every_manifest_is_used() -> None:
    used = set(_referenced(KUBERNETES))
    files = {file for file in KUBERNETES.rglob("*.yaml") if file.name != "kustomization.yaml"}
    assert files <= used, sorted(map(str, files - used))
    assert all(path.exists() for path in used)
