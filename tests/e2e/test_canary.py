"""A canary of Standard mode on a real cluster: 10 % beside the stable one, then promoted without a restart, then rolled back."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .cluster import ROUTES, Cluster, KubectlFailed, render

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recommender(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """The recommender with version 2 at 10 %, settled; as written."""
    if not cluster.has_kind(ROUTES):
        pytest.skip("the cluster has no Gateway API: Standard mode splits nothing")
    text = render(ROOT / "inferenceservices/recommender/standard")
    documents = [item for item in yaml.safe_load_all(text) if item]
    service = next(item for item in documents if item["kind"] == "InferenceService")
    if "canary" not in cluster.kubectl("explain", "inferenceservice.spec", namespaced=False):
        pytest.skip("this KServe has no spec.canary (0.20 is the first)")
    cluster.apply(text)
    try:
        cluster.wait_settled("recommender")
        if cluster.way_in("recommender")["kind"] != "HTTPRoute":
            pytest.skip("KServe makes an Ingress here, which splits nothing: its ConfigMap does not enable Gateway API")
        yield service
    finally:
        cluster.remove("recommender")


def weights(cluster: Cluster) -> dict[str, int]:
    """Share of each Service on the recommender's own route; every rule splits alike."""
    route = cluster.get(ROUTES, "recommender")
    assert route is not None
    found = [
        {ref["name"]: ref.get("weight", 1) for ref in rule["backendRefs"]}
        for rule in route["spec"]["rules"]
        if rule.get("backendRefs")
    ]
    assert all(rule == found[0] for rule in found), found
    return found[0]


def settle(cluster: Cluster, service: dict[str, Any]) -> None:
    cluster.apply(yaml.safe_dump(service))
    cluster.wait_settled("recommender")


def test_the_canary_gets_its_share_of_every_rule(cluster: Cluster, recommender: dict[str, Any]) -> None:
    wanted = {"recommender-v1-predictor": 90, "recommender-v2-predictor": 10}
    cluster.wait("the split", lambda: weights(cluster) == wanted, seen=lambda: json.dumps(weights(cluster)))
    scaler = cluster.get("hpa", "recommender-v2-predictor")
    assert scaler is None or scaler["spec"]["minReplicas"] == scaler["spec"]["maxReplicas"]


def serinus(cluster: Cluster, *words: str) -> str:
    """`serinus canary` on the test's namespace, through the same KUBECONFIG."""
    command = [sys.executable, "-m", "serinus.cli", "canary", *words, "--namespace", cluster.namespace]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=cluster.timeout_s + 60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_serinus_sees_both_versions_and_their_share(cluster: Cluster, recommender: dict[str, Any]) -> None:
    seen = json.loads(serinus(cluster, "status", "recommender", "-o", "json"))
    told = {key: seen[key] for key in ("mode", "stable", "canary", "percent", "served_percent", "ready")}
    assert told == {
        "mode": "Standard",
        "stable": "recommender-v1-predictor",
        "canary": "recommender-v2-predictor",
        "percent": 10,
        "served_percent": 10,
        "ready": True,
    }


@pytest.mark.parametrize("how", ["kubectl", "serinus"])
def test_a_promotion_restarts_nothing_and_leaves_one_version(
    cluster: Cluster, recommender: dict[str, Any], how: str
) -> None:
    before = cluster.get("deployment", "recommender-v2-predictor")
    assert before is not None
    if how == "serinus":
        serinus(cluster, "promote", "recommender")
    else:
        promote_by_hand(cluster, recommender)
    cluster.wait_settled("recommender")
    cluster.wait("version 1 is gone", lambda: cluster.get("deployment", "recommender-v1-predictor") is None)
    after = cluster.get("deployment", "recommender-v2-predictor")
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    template = lambda deployment: deployment["spec"]["template"]  # noqa: E731
    assert template(after) == template(before)
    cluster.wait(
        "all traffic",
        lambda: set(weights(cluster)) == {"recommender-v2-predictor"},
        seen=lambda: json.dumps(weights(cluster)),
    )


def promote_by_hand(cluster: Cluster, recommender: dict[str, Any]) -> None:
    """Make the canary's block the predictor, as a person would."""
    promoted = copy.deepcopy(recommender)
    (canary,) = promoted["spec"].pop("canary")
    stable = promoted["spec"]["predictor"]
    promoted["spec"]["predictor"] = {
        **{k: stable[k] for k in ("minReplicas", "maxReplicas") if k in stable},
        **canary["predictor"],
    }
    # A merge keeps a list that is gone from the manifest: it is removed by name.
    cluster.kubectl("patch", "inferenceservice", "recommender", "--type=json", "-p", json.dumps([
        {"op": "replace", "path": "/spec/predictor", "value": promoted["spec"]["predictor"]}, {"op": "remove", "path": "/spec/canary"},
    ]))  # fmt: skip


@pytest.mark.parametrize("how", ["kubectl", "serinus"])
def test_a_rollback_leaves_the_stable_version_as_it_was(
    cluster: Cluster, recommender: dict[str, Any], how: str
) -> None:
    before = cluster.get("deployment", "recommender-v1-predictor")
    assert before is not None
    if how == "serinus":
        serinus(cluster, "rollback", "recommender")
    else:
        gone = json.dumps([{"op": "remove", "path": "/spec/canary"}])
        cluster.kubectl("patch", "inferenceservice", "recommender", "--type=json", "-p", gone)
    cluster.wait_settled("recommender")
    cluster.wait("version 2 is gone", lambda: cluster.get("deployment", "recommender-v2-predictor") is None)
    after = cluster.get("deployment", "recommender-v1-predictor")
    assert after is not None
    assert after["spec"]["template"] == before["spec"]["template"]
    cluster.wait(
        "all traffic",
        lambda: set(weights(cluster)) == {"recommender-v1-predictor"},
        seen=lambda: json.dumps(weights(cluster)),
    )


def test_the_webhook_refuses_what_the_linter_says_it_refuses(cluster: Cluster, recommender: dict[str, Any]) -> None:
    wrong = copy.deepcopy(recommender)
    wrong["spec"]["canary"][0]["predictor"]["maxReplicas"] = 2
    with pytest.raises(KubectlFailed, match="maxReplicas"):
        cluster.apply(yaml.safe_dump(wrong))
