"""What the overlays bring beside runtimes passes the API server's strict validation; nothing of it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kustomize_support import ROOT, render

from .cluster import Cluster

KINDS = {"PodMonitor": "podmonitors.monitoring.coreos.com", "PrometheusRule": "prometheusrules.monitoring.coreos.com"}


@pytest.mark.parametrize("name", ["local", "staging", "production", "production-gpu"])
def test_an_overlay_is_accepted_by_the_api_server(cluster: Cluster, name: str):
    documents = []
    for document in render(Path(ROOT / "manifests/overlays" / name)):
        kind = document["kind"]
        if kind in KINDS and not cluster.has_kind(KINDS[kind]):
            continue  # no Prometheus Operator there
        if "namespace" in document["metadata"]:  # theirs does not exist in a dry run
            document = {**document, "metadata": {**document["metadata"], "namespace": cluster.namespace}}
        documents.append(document)
    words = ["apply", "--dry-run=server", "--validate=strict", "--server-side", "--force-conflicts", "-f", "-"]
    told = cluster.kubectl(*words, text=yaml.safe_dump_all(documents), namespaced=False)
    assert told.count("serverside-applied") == len(documents)
