"""A canary of Standard mode on a real cluster: 10 % beside the stable one, then promoted without a restart, then rolled back."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .cluster import Cluster, KubectlFailed, render

ROOT = Path(__file__).resolve().parents[2]
ROUTE = "httproutes.gateway.networking.k8s.io"


@pytest.fixture
def recommender(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """The recommender with version 2 at 10 %, settled; as written."""
    if not cluster.has_kind(ROUTE):
        pytest.skip("the cluster has no Gateway API: Standard mode splits nothing")
    text = render(ROOT / "inferenceservices/recommender/standard")
    documents = [item for item in yaml.safe_load_all(text) if item]
    service = next(item for item in documents if item["kind"] == "InferenceService")
    if "canary" not in cluster.kubectl("explain", "inferenceservice.spec", namespaced=False):
        pytest.skip("this KServe has no spec.canary (0.20 is the first)")
    cluster.apply(text)
    try:
        cluster.wait_settled("recommender")
        yield service
    finally:
        cluster.kubectl("delete", "inferenceservice", "recommender", "--wait=true", "--timeout=60s", check=False)


def weights(cluster: Cluster) -> dict[str, int]:
    """Share of each Service on the recommender's own route; every rule splits alike."""
    route = cluster.get(ROUTE, "recommender")
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


def test_a_promotion_restarts_nothing_and_leaves_one_version(cluster: Cluster, recommender: dict[str, Any]) -> None:
    before = cluster.get("deployment", "recommender-v2-predictor")
    assert before is not None
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


def test_a_rollback_leaves_the_stable_version_as_it_was(cluster: Cluster, recommender: dict[str, Any]) -> None:
    before = cluster.get("deployment", "recommender-v1-predictor")
    assert before is not None
    cluster.kubectl(
        "patch",
        "inferenceservice",
        "recommender",
        "--type=json",
        "-p",
        json.dumps([{"op": "remove", "path": "/spec/canary"}]),
    )
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
