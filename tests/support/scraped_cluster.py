"""A real Prometheus that scrapes real servers of ours as our PodMonitor says: one that is well and one with faults, under load; one unready.

What Kubernetes' service discovery says of a pod (`__meta_kubernetes_*`) is written into the configuration, and the PodMonitor's relabelings
follow, as Prometheus Operator translates them. Series of kube-state-metrics, cAdvisor and NVIDIA's DCGM exporter come from a page that is
written here, in their names and labels: those programs need a cluster or a GPU.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from certificate_support import Authority
from faulty_model import HANG_TIMEOUT_S, SLOW_ROW
from prometheus_server import ask_prometheus, free_port, prometheus_server
from promtool import MONITORING
from serve_support import Served, serving

__all__ = ["ScrapedCluster", "discovered", "scrape_job", "scraped_cluster"]

MODELS = Path(__file__).with_name("faulty_model.py")
NAMESPACE, SERVICE = "models", "fraud"
STABLE, CANARY, DARK, TROUBLED = "fraud-predictor", "fraud-v2-predictor", "fraud-v3-predictor", "fraud-v4-predictor"
SCORES = ("--score_output", "y", "--score_bins", "1,2,3,4,5")
CONTAINER = f'namespace="{NAMESPACE}",pod="{CANARY}-0",container="kserve-container"'


ON_KNATIVE = {
    "__meta_kubernetes_pod_label_serving_kserve_io_inferenceservice": "knative",
    "__meta_kubernetes_pod_label_app": "fraud-predictor-00002",
    "__meta_kubernetes_pod_label_serving_knative_dev_revision": "fraud-predictor-00002",
}
"""What differs in Knative mode; the service has another name, so that one server stands for two."""


@dataclass
class ScrapedCluster:
    """Where everything listens."""

    prometheus: str
    stable: Served
    canary: Served
    dark: Served
    """Not ready, and without traffic."""
    troubled_port: int
    """Metrics of a server over TLS whose certificate ends in three days, whose model hangs, and one of whose two workers was killed."""
    stop: threading.Event = field(default_factory=threading.Event)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query; its samples, of which those that are NaN are no data to Grafana."""
        data = self.get("query", query=expression)
        samples = data["result"] if data["resultType"] == "vector" else [{"metric": {}, "value": data["result"]}]
        return [sample for sample in samples if sample["value"][1] != "NaN"]

    def get(self, path: str, **arguments: str) -> Any:
        """Ask Prometheus' API."""
        return ask_prometheus(self.prometheus, path, **arguments)


_PAUSE_S = 0.06
"""Of a client between two requests: ten of them still ask the faulty model for more than the 50 a second that it can do."""


class _Page(http.server.BaseHTTPRequestHandler):
    """What a cluster's own exporters say of the canary's pod; restarts go up by one a scrape."""

    scrapes = 0

    def do_GET(self) -> None:
        _Page.scrapes += 1
        body = "".join(
            f"{line}\n"
            for line in (
                f'kube_pod_container_resource_limits{{{CONTAINER},resource="memory",unit="byte"}} 4e9',
                f"kube_pod_container_status_restarts_total{{{CONTAINER}}} {_Page.scrapes}",
                f'kube_pod_container_status_last_terminated_reason{{{CONTAINER},reason="OOMKilled"}} 1',
                f'container_memory_working_set_bytes{{{CONTAINER},id="/kubepods/x"}} {3e9 + 1e7 * _Page.scrapes}',
                f"container_cpu_cfs_periods_total{{{CONTAINER}}} {10 * _Page.scrapes}",
                f"container_cpu_cfs_throttled_periods_total{{{CONTAINER}}} {6 * _Page.scrapes}",
                'DCGM_FI_DEV_GPU_UTIL{Hostname="n1",gpu="0"} 83',
                'DCGM_FI_DEV_FB_USED{Hostname="n1",gpu="0"} 80000',
                'DCGM_FI_DEV_FB_FREE{Hostname="n1",gpu="0"} 1500',
            )
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def scraped_cluster(folder: Path) -> Iterator[ScrapedCluster]:
    """Start everything; stopped on exit."""
    with contextlib.ExitStack() as stack:
        started: dict[str, Served] = {}
        for name, class_, flags in (
            (STABLE, "Steady", SCORES),
            (CANARY, "Faulty", ("--max_queue_rows", "6", "--warmup", "false", *SCORES)),
            (DARK, "Unready", ()),
        ):
            (folder / name).mkdir()
            # As manifests/components/revision says it: by KServe's label of the pod.
            words = ("--class", f"{MODELS}:{class_}", "--model_name", SERVICE, "--revision", f"isvc.{name}", *flags)
            started[name] = stack.enter_context(
                serving(folder / name, *words, environment={"PYTHONPATH": str(MODELS.parent)})
            )
        troubled, troubled_port = stack.enter_context(_troubled(folder / TROUBLED))
        page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
        threading.Thread(target=page.serve_forever, args=(0.02,), daemon=True).start()
        stack.callback(page.server_close)
        stack.callback(page.shutdown)
        address = stack.enter_context(
            _prometheus(
                folder,
                {**{name: served.http_port for name, served in started.items()}, TROUBLED: troubled_port},
                page.server_port,
            )
        )
        cluster = ScrapedCluster(address, started[STABLE], started[CANARY], started[DARK], troubled_port)
        threads = [
            threading.Thread(target=_load, args=(served, kind, cluster.stop), daemon=True)
            for served, kinds in (
                (cluster.stable, ("good", "unknown")),
                (cluster.canary, (*["good"] * 10, "bad", "invalid", "hurried")),
            )
            for kind in kinds
        ]
        threads.append(threading.Thread(target=_load, args=(troubled, "hanging", cluster.stop), daemon=True))
        for thread in threads:
            thread.start()
        stack.callback(lambda: [thread.join(10) for thread in threads])
        stack.callback(cluster.stop.set)
        yield cluster


def _load(served: Served, kind: str, stop: threading.Event) -> None:
    """Send requests of one kind, one after another, with a pause so that the test leaves the machine to others."""
    tensor: dict[str, Any] = {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [1.0, 2.0]}
    body: dict[str, Any] = {"inputs": [tensor]}
    path = f"/v2/models/{SERVICE}/infer"
    if kind == "bad":
        tensor["data"] = [-1.0, 2.0]
    elif kind == "invalid":
        tensor["name"] = "z"
    elif kind == "hurried":
        # Taken, since the model is usually quicker than that, and too slow for this one.
        tensor["data"] = [SLOW_ROW, 2.0]
        body["parameters"] = {"timeout": 250_000}  # microseconds
    elif kind == "hanging":
        tensor["data"] = [SLOW_ROW, 2.0]
    elif kind == "unknown":
        path = "/v2/models/nobody/infer"
    connection = (
        http.client.HTTPSConnection("127.0.0.1", served.http_port, timeout=30, context=_trusting_anybody())
        if kind == "hanging"
        else http.client.HTTPConnection("127.0.0.1", served.http_port, timeout=30)
    )
    content = json.dumps(body)
    while not stop.is_set():
        connection.request("POST", path, content, {"Content-Type": "application/json"})
        connection.getresponse().read()
        stop.wait(5.0 if kind == "hanging" else _PAUSE_S)  # a process ends over each that hangs
    connection.close()


def _trusting_anybody() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@contextlib.contextmanager
def _troubled(folder: Path) -> Iterator[tuple[Served, int]]:
    """Start the server that `ScrapedCluster.troubled_port` is of; it and its plain port of metrics."""
    folder.mkdir()
    issued = Authority(folder, "ours").issue("server", ends_in_days=3)
    port = free_port()
    flags = ("--ssl_certfile", str(issued.certificate), "--ssl_keyfile", str(issued.key), "--metrics_port", str(port))
    flags += ("--hang_timeout_s", str(HANG_TIMEOUT_S), "--workers", "2", "--revision", f"isvc.{TROUBLED}")
    words = ("--class", f"{MODELS}:Hanging", "--model_name", SERVICE, *flags)
    with serving(folder, *words, environment={"PYTHONPATH": str(MODELS.parent)}) as served:
        workers = [
            child
            for child in psutil.Process(served.process.pid).children()
            if "resource_tracker" not in " ".join(child.cmdline())
        ]
        workers[0].kill()
        yield served, port


@contextlib.contextmanager
def _prometheus(folder: Path, pods: Mapping[str, int], exporters: int) -> Iterator[str]:
    """Start Prometheus, which scrapes the pods as our PodMonitors say, and one that is gone."""
    targets = {f"127.0.0.1:{port}": name for name, port in pods.items()}
    with socket.socket() as unused:  # bound and not listening: a pod that is gone
        unused.bind(("127.0.0.1", 0))
        targets[f"127.0.0.1:{unused.getsockname()[1]}"] = "fraud-gone"
        jobs = [
            scrape_job({target: discovered(name) for target, name in targets.items()}),
            {
                "job_name": "podMonitor/models/serinus-knative/0",
                "static_configs": [
                    {"targets": [f"127.0.0.1:{pods[STABLE]}"], "labels": {**discovered(STABLE), **ON_KNATIVE}}
                ],
                "relabel_configs": relabelings("pod-monitor-knative"),
            },
            {"job_name": "cluster", "static_configs": [{"targets": [f"127.0.0.1:{exporters}"]}]},
        ]
        with prometheus_server(folder, {"scrape_configs": jobs}) as address:
            yield address


def scrape_job(pods: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Say to Prometheus what its operator makes of our PodMonitor: for each address what is `discovered` of its pod."""
    return {
        "job_name": "podMonitor/models/serinus/0",
        "metrics_path": "/metrics",
        "static_configs": [{"targets": [target], "labels": dict(labels)} for target, labels in pods.items()],
        "relabel_configs": relabelings("pod-monitor"),
    }


def discovered(name: str) -> dict[str, str]:
    """What Kubernetes' service discovery knows of a pod, as Prometheus names it."""
    return {
        "__meta_kubernetes_namespace": NAMESPACE,
        "__meta_kubernetes_pod_name": f"{name}-0",
        "__meta_kubernetes_pod_container_name": "kserve-container",
        "__meta_kubernetes_pod_label_serving_kserve_io_inferenceservice": SERVICE,
        "__meta_kubernetes_pod_label_component": "predictor",
        "__meta_kubernetes_pod_label_app": f"isvc.{name}",
    }


def relabelings(name: str) -> list[dict[str, Any]]:
    """The operator's own relabelings, then those of our PodMonitor in Prometheus' spelling."""
    own = [
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_container_name"], "target_label": "container"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
    ]
    monitor = yaml.safe_load((MONITORING / name / "podmonitor.yaml").read_text())
    endpoint = monitor["spec"]["podMetricsEndpoints"][0]
    spelled = [
        {re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", key): value for key, value in relabeling.items()}
        for relabeling in endpoint["relabelings"]
    ]
    return own + spelled
