"""A canary of Knative mode on a real cluster: 10 % of the newest revision, then promoted, then rolled back, by `serinus canary`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .cluster import KNATIVE, Cluster, is_control_plane_only, render

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "inferenceservices/recommender/knative"
PREDICTOR = "recommender-predictor"


def manifest(version: str) -> str:
    """A version's objects; in a namespace of its own, so what both have in common is applied again."""
    return yaml.safe_dump_all(item for item in yaml.safe_load_all(render(FOLDER / version)) if item)


@pytest.fixture
def canary(cluster: Cluster) -> Iterator[Cluster]:
    """The recommender's second version at 10 % beside the first, settled."""
    if reason := cluster.lacks_knative():
        pytest.skip(reason)
    if is_control_plane_only() and cluster.runs_knative():
        pytest.skip("Knative's controllers wait for pods, and there are no nodes")
    try:
        cluster.apply(manifest("v1"))
        cluster.wait_settled("recommender")
        wait_for_shares(cluster, [(f"{PREDICTOR}-00001", 100)])
        cluster.apply(manifest("canary"))
        wait_for_shares(cluster, [(f"{PREDICTOR}-00001", 90), (f"{PREDICTOR}-00002", 10)])
        yield cluster
    finally:
        cluster.remove("recommender")


def shares(cluster: Cluster) -> list[tuple[str, int]]:
    """Revisions and their percentages, as KServe reads them of Knative."""
    status = (cluster.get("inferenceservice", "recommender") or {}).get("status", {})
    traffic = status.get("components", {}).get("predictor", {}).get("traffic", [])
    return sorted((str(each.get("revisionName")), int(each.get("percent") or 0)) for each in traffic)


def wait_for_shares(cluster: Cluster, wanted: list[tuple[str, int]]) -> None:
    cluster.wait(f"traffic {wanted}", lambda: shares(cluster) == wanted, seen=lambda: str(shares(cluster)))


def serinus(cluster: Cluster, *words: str) -> str:
    command = [sys.executable, "-m", "serinus.cli", "canary", *words, "--namespace", cluster.namespace]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=cluster.timeout_s + 60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def template(cluster: Cluster) -> dict[str, Any]:
    made = cluster.get(KNATIVE, PREDICTOR)
    assert made is not None
    return made["spec"]["template"]


def test_serinus_sees_both_revisions_and_what_they_get(canary: Cluster) -> None:
    seen = json.loads(serinus(canary, "status", "recommender", "-o", "json"))
    told = {key: seen[key] for key in ("mode", "stable", "canary", "percent", "served_percent", "ready")}
    assert told == {
        "mode": "Knative",
        "stable": f"{PREDICTOR}-00001",
        "canary": f"{PREDICTOR}-00002",
        "percent": 10,
        "served_percent": 10,
        "ready": True,
    }


def test_a_promotion_gives_the_newest_revision_everything_and_makes_no_other(canary: Cluster) -> None:
    before = template(canary)
    serinus(canary, "promote", "recommender")
    wait_for_shares(canary, [(f"{PREDICTOR}-00002", 100)])
    assert template(canary) == before


def test_a_rollback_gives_the_old_revision_everything_and_makes_no_other(canary: Cluster) -> None:
    before = template(canary)
    serinus(canary, "rollback", "recommender")
    wait_for_shares(canary, [(f"{PREDICTOR}-00001", 100), (f"{PREDICTOR}-00002", 0)])
    assert template(canary) == before
