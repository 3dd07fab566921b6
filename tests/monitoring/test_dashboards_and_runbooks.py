"""Every panel shows data and every command of the runbooks answers, against real servers, one of which has the faults."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from promtool import MONITORING, alerting_rules, has_prometheus, rules
from scraped_cluster import CANARY, DARK, NAMESPACE, SERVICE, STABLE, TROUBLED, ScrapedCluster, scraped_cluster
from serinus.cli import main as serinus
from waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_prometheus(), reason="needs prometheus and promtool (Debian: prometheus)"),
]

DASHBOARDS = MONITORING / "dashboards"
RUNBOOKS = (MONITORING / "RUNBOOKS.md").read_text()
FOREIGN = {
    "ALERTS": "Prometheus",
    "up": "Prometheus",
    "kube_pod_container_resource_limits": "kube-state-metrics",
    "kube_pod_container_status_last_terminated_reason": "kube-state-metrics",
    "kube_pod_container_status_restarts_total": "kube-state-metrics",
    "container_memory_working_set_bytes": "cAdvisor",
    "container_cpu_cfs_periods_total": "cAdvisor",
    "container_cpu_cfs_throttled_periods_total": "cAdvisor",
    "DCGM_FI_DEV_GPU_UTIL": "dcgm-exporter",
    "DCGM_FI_DEV_FB_USED": "dcgm-exporter",
    "DCGM_FI_DEV_FB_FREE": "dcgm-exporter",
}
"""Metrics of others that we name, and who exports them."""


def panels(name: str) -> list[dict[str, Any]]:
    """Every panel of a dashboard that asks something."""
    board = json.loads((DASHBOARDS / f"{name}.json").read_text())
    return [panel for panel in board["panels"] if panel.get("targets")]


BOARDS = sorted(path.stem for path in DASHBOARDS.glob("*.json"))
QUERIES = [
    pytest.param(target["expr"], id=f"{board}-{panel['title']}-{target['refId']}")
    for board in BOARDS
    for panel in panels(board)
    for target in panel["targets"]
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScrapedCluster]:
    with scraped_cluster(tmp_path_factory.mktemp("cluster")) as running:
        # Both outcomes of a fault, so that what is looked at later is there.
        for outcome in ("rejected", "timeout", "failed", "invalid"):
            claim = f'increase(serinus_requests_total{{outcome="{outcome}"}}[1m]) > 0'
            wait_until(lambda claim=claim: running.query(claim), limit_s=60)
        yield running


def chosen(expression: str) -> str:
    """A panel's query as Grafana sends it with every service chosen."""
    filled = expression.replace("$__rate_interval", "1m").replace("$namespace", ".*").replace("$service", ".*")
    assert "$" not in filled
    return filled


@pytest.mark.parametrize("expression", QUERIES)
def test_no_panel_is_empty(cluster: ScrapedCluster, expression: str):
    wait_until(lambda: cluster.query(chosen(expression)), limit_s=40)


def test_canary_panels_tell_the_revisions_apart(cluster: ScrapedCluster):
    for panel in panels("canary"):
        for target in panel["targets"]:

            def revisions(asked: str = chosen(target["expr"])) -> set[str | None]:
                return {sample["metric"].get("revision") for sample in cluster.query(asked)}

            # Quantiles are there when there were two scrapes with requests between them.
            wait_until(lambda revisions=revisions: {STABLE, CANARY} <= revisions(), limit_s=40)


def test_variables_of_the_dashboards_list_namespaces_and_services(cluster: ScrapedCluster):
    for board in BOARDS:
        variables = json.loads((DASHBOARDS / f"{board}.json").read_text())["templating"]["list"]
        for variable in variables:
            if variable["type"] != "query":
                continue
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert found
            values = cluster.get(f"label/{found[2]}/values", **{"match[]": chosen(found[1])})
            assert {SERVICE if variable["name"] == "service" else NAMESPACE} <= set(values)


def test_the_monitor_of_knative_mode_tells_knatives_revision(cluster: ScrapedCluster):
    wait_until(lambda: cluster.query('serinus_model_ready{inferenceservice="knative"}'))
    (sample,) = cluster.query('serinus_model_ready{inferenceservice="knative"}')
    labels = {name: sample["metric"][name] for name in ("namespace", "component", "revision")}
    assert labels == {"namespace": NAMESPACE, "component": "predictor", "revision": "fraud-predictor-00002"}


def exported(cluster: ScrapedCluster) -> set[str]:
    """Names of series on the pages of both servers."""
    pages = [served.ask("GET", "/metrics")[1] for served in (cluster.stable, cluster.canary, cluster.dark)]
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.troubled_port}/metrics", timeout=10) as answer:
        pages.append(answer.read().decode())
    return {
        line.split("{")[0].split(" ")[0] for page in pages for line in page.splitlines() if line[:1] not in ("", "#")
    }


def test_rules_and_panels_ask_for_what_is_exported_and_for_nothing_else(cluster: ScrapedCluster):
    ours = exported(cluster) | {
        rule["record"] for group in rules()["groups"] for rule in group["rules"] if "record" in rule
    }
    asked = [rule["expr"] for group in rules()["groups"] for rule in group["rules"]]
    asked += [target["expr"] for board in BOARDS for panel in panels(board) for target in panel["targets"]]
    asked += re.findall(r'^\s*(?:echo \S+ \$\()?ask "(.*)"\)?$', RUNBOOKS, re.MULTILINE)
    named = set()
    for expression in asked:
        bare = re.sub(r'\\?"[^"]*"', '""', expression).replace("${part}", "queue")
        bare = re.sub(r"\b(?:by|on|group_left|group_right|without)\s*\([^)]*\)", " ", bare)
        bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", " ", bare)
        named |= {name for name in re.findall(r"[a-zA-Z_:][\w:]*(?!\w*\()", bare) if "_" in name or name in FOREIGN}
    functions = {"histogram_quantile", "avg_over_time", "predict_linear", "group_left"}
    unknown = named - functions - ours - FOREIGN.keys()
    assert not unknown
    assert len(named & ours) > 20


def test_every_rule_evaluates_on_real_series_without_an_error(cluster: ScrapedCluster):
    def evaluated() -> list[dict[str, Any]]:
        found = [rule for group in cluster.get("rules")["groups"] for rule in group["rules"]]
        return found if all(rule["health"] == "ok" for rule in found) else []

    wait_until(evaluated, limit_s=30)
    assert not [rule for rule in evaluated() if rule.get("lastError")]


def test_faults_of_the_canary_fire_their_alerts_and_the_stable_version_none(cluster: ScrapedCluster):
    def firing(more: str = "") -> set[str]:
        return {sample["metric"]["alertname"] for sample in cluster.query(f'ALERTS{{alertstate="firing"{more}}}')}

    wanted = {
        "SerinusErrorBudgetBurn",
        "SerinusQueueTimeHigh",
        "SerinusRequestsRefused",
        "SerinusTargetDown",
        "SerinusCanaryStuck",
        "SerinusCanaryWithoutTraffic",
        "SerinusModelNotReady",
        "SerinusContainerRestarting",
        "SerinusOutOfMemoryKilled",
        "SerinusGpuMemoryFragmented",
        "SerinusGpuAllocationRetries",
        "SerinusGpuOutOfMemory",
        "SerinusGpuMemoryNearlyFull",
        "SerinusModelHangs",
        "SerinusCertificateExpires",
    }
    wait_until(lambda: wanted <= firing(), limit_s=60)
    assert not firing(f', revision="{STABLE}"') - {"SerinusTargetDown"}
    for alert in cluster.get("alerts")["alerts"]:
        text = alert["annotations"]["description"]
        assert "<no value>" not in text
        assert "error" not in text


# The runbooks.

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
INTRODUCTION, *_ = re.split(r"^## ", RUNBOOKS, flags=re.MULTILINE)
PREAMBLE = BLOCK.findall(INTRODUCTION)[0]
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"^## ", RUNBOOKS, flags=re.MULTILINE)[1:]}
IN_A_CLUSTER = ("kubectl ", "serinus canary ")
COMMANDS = sorted(
    {line for block in BLOCK.findall(RUNBOOKS) for line in block.splitlines() if line.startswith(IN_A_CLUSTER)}
)
SEEN = {
    "The p99 spike": [
        rf"^\d.*revision={CANARY}",
        r"^queue 0\.\d+",
        r"^compute_infer 0\.\d+",
        r"^1 rows: 0\.\d+ s",
        r"^0\.(?:6|59)\d* ",
        r"^0\.39",
        r"^0\.025",
    ],
    "SerinusLatencyP99High": [rf"^\d.*revision={CANARY}"],
    "SerinusErrorBudgetBurn": [r"outcome=failed", r"outcome=rejected", r"outcome=timeout"],
    "SerinusQueueTimeHigh": [r"serinus_queue_requests\{.*\} [1-9]"],
    "SerinusBatchCollapse": [r"^1 rows: \d+ predicts", r'"name": "fraud"'],
    "SerinusRequestsRefused": [r'outcome="rejected".*\} [1-9]', r'outcome="timeout".*\} [1-9]'],
    "SerinusModelNotReady": [r"^503$", r"serinus_model_ready\{.*\} 0"],
    "SerinusTargetDown": [r"^0 .*pod=fraud-gone-0", r"^200$"],
    "SerinusCanaryStuck": [rf"revision={CANARY}", rf"revision={STABLE}"],
    "SerinusCanaryWithoutTraffic": [rf"^0 revision={DARK}"],
    "SerinusMemoryGrowth": [rf"^\d{{5,}}.*revision={CANARY}", r"process_resident_memory_bytes"],
    "SerinusContainerRestarting": [r"reason=OOMKilled"],
    "SerinusOutOfMemoryKilled": [r"resource=memory", r"process_resident_memory_bytes\{.*\} \d"],
    "SerinusGpuMemoryFragmented": [r"inactive_split_bytes\{.*\} 33285996544", r"^0\.39\d* .*device=0"],
    "SerinusGpuAllocationRetries": [r"alloc_retries_total\{.*\} \d", r"^\d.*device=0"],
    "SerinusGpuOutOfMemory": [r"ooms_total\{.*\} [1-9]"],
    "SerinusGpuMemoryNearlyFull": [r"^0\.98.* gpu=0"],
    "SerinusMemoryRestart": [r"serinus_memory_restart_pending\{.*\} 0", r"^1 reason=ended"],
    "SerinusModelHangs": [r"serinus_model_hangs_total\{.*\} [1-9]", rf"^\d.*pod={TROUBLED}-0"],
    "SerinusWorkersRestarting": [
        r'worker_restarts_total\{.*reason="ended".*\} 1',
        rf"pod={TROUBLED}-0 reason=ended|reason=ended pod={TROUBLED}-0",
    ],
    "SerinusCertificateExpires": [r"certificate_expiry_timestamp_seconds\{.*\} \d", r"^2\.9\d* .*certificate="],
    "SerinusModelUntrusted": [r"signature_refusals_total\{.*\} 0", rf"^0 .*pod={TROUBLED}-0"],
    "SerinusEventLoopLate": [r"serinus_loop_held_total\{.*\} \d", rf"^\d.*pod={TROUBLED}-0", r"^0\.(?:6|59)\d* "],
    "SerinusOverloaded": [r"outcome=rejected", r'outcome="rejected".*\} [1-9]'],
}
"""What the commands of a section say of the faulty server, as patterns of lines."""
OF_THE_TROUBLED = {
    "SerinusMemoryRestart",
    "SerinusModelHangs",
    "SerinusWorkersRestarting",
    "SerinusCertificateExpires",
    "SerinusModelUntrusted",
    "SerinusEventLoopLate",
}
"""Sections whose commands are run against the server over TLS."""


@pytest.mark.parametrize("title", SECTIONS)
def test_the_commands_of_a_runbook_show_the_fault(cluster: ScrapedCluster, title: str, tmp_path: Path):
    (tmp_path / "service.yaml").write_text(
        (MONITORING.parents[1] / "inferenceservices/fraud/fused/inferenceservice.yaml").read_text()
    )
    here = "\n".join(
        line
        for block in BLOCK.findall(SECTIONS[title])
        for line in block.splitlines()
        if not line.startswith(IN_A_CLUSTER)
    )
    # An answer without a line is one that the section says nothing about.
    strict = PREAMBLE.replace("ask() {", "bare() {") + (
        'ask() { local told; told=$(bare "$@"); [ -n "$told" ] || { echo "no data: $1" >&2; return 3; }; echo "$told"; }\n'
    )
    asked = (cluster.dark if title == "SerinusModelNotReady" else cluster.canary).http_port
    if title in OF_THE_TROUBLED:
        asked = cluster.troubled_port
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SERVER": f"http://127.0.0.1:{asked}",
        "PROMETHEUS": cluster.prometheus,
        "NAMESPACE": NAMESPACE,
        "SERVICE": SERVICE,
        "MODEL": SERVICE,
    }
    script = f"set -euo pipefail\n{strict}\n{here}\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    for pattern in SEEN[title]:
        assert re.search(pattern, done.stdout, re.MULTILINE), (pattern, done.stdout)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_needs_a_cluster_is_right_as_far_as_the_connection(line: str, tmp_path: Path):
    """Verbs, flags and patches are read before the cluster is asked, which refuses the connection."""
    configuration = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {}}],
        "current-context": "none",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(configuration))
    words = {
        "NAMESPACE": "models",
        "SERVICE": "fraud",
        "POD": "fraud-0",
        "NODE": "n1",
        "PROMETHEUS": "http://127.0.0.1:9",
    }
    environment = {**words, "KUBECONFIG": str(tmp_path / "kubeconfig")}
    done = _typed(line.split(" > ")[0], tmp_path, environment)
    assert done.returncode in {1, 15}
    assert "refused" in done.stderr, done.stderr


def _typed(line: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell; a command of ours that ends by itself in this process, which spares its imports."""
    if line.startswith("serinus ") and not line.startswith("serinus canary run"):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for name, value in environment.items():
                patch.setenv(name, value)
            _, *words = shlex.split(os.path.expandvars(line))
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                status = serinus(words)
        return subprocess.CompletedProcess(line, status, "", said.getvalue())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, **environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# What is committed.


def test_the_dashboards_are_what_their_generator_writes():
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's SDK needs Python 3.11")
    sys.path.insert(0, str(DASHBOARDS))
    try:
        specification = importlib.util.spec_from_file_location("generate_dashboards", DASHBOARDS / "generate.py")
        assert specification
        assert specification.loader
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(DASHBOARDS))
    assert {path.name: path.read_text() for path in DASHBOARDS.glob("*.json")} == module.dashboards()


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_holds_what_grafanas_schema_knows_and_no_null(name: str):
    """Read by the models that Grafana generates of its schema, and written again, nothing is lost or new."""
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's SDK needs Python 3.11")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    text = (DASHBOARDS / f"{name}.json").read_text()
    written = json.loads(text)
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(written))) == written
    assert "null" not in re.sub(r'"(?:[^"\\]|\\.)*"', "", text), "a null is no object to Grafana's panels"


def test_a_runbook_link_opens_the_panel_of_its_alert_and_that_holds_its_section():
    board = json.loads((DASHBOARDS / "on-call.json").read_text())
    assert board["uid"] == "serinus-on-call"
    texts = {panel["id"]: panel for panel in board["panels"] if panel["type"] == "text"}
    for rule in alerting_rules():
        panel = texts[int(rule["annotations"]["runbook_url"].rpartition("=")[2])]
        assert panel["title"] == rule["alert"]
        assert panel["options"]["content"] == SECTIONS[rule["alert"]].split("\n", 1)[1].strip()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


def test_there_is_a_runbook_for_each_alert_and_a_test_of_what_it_shows():
    assert SECTIONS.keys() - {"The p99 spike"} == {rule["alert"] for rule in alerting_rules()}
    assert SEEN.keys() == SECTIONS.keys()


def test_a_dashboard_is_in_a_configmap_that_grafana_takes():
    component = yaml.safe_load((DASHBOARDS / "kustomization.yaml").read_text())
    files = {file for generator in component["configMapGenerator"] for file in generator["files"]}
    assert files == {path.name for path in DASHBOARDS.glob("*.json")}
    assert component["generatorOptions"]["labels"]["grafana_dashboard"] == "1"
