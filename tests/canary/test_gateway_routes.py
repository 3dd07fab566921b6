"""The HTTPRoute beside KServe's."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from serinus.canary.targets.gateway_routes import RouteOptions, make_route
from serinus.cli.operator import run as command
from serinus.errors import ConfigError

BASE = {"name": "fraud", "namespace": "prod", "host": "fraud-prod.example.com", "canary": "v2"}


def rules(**options: Any) -> list[dict[str, Any]]:
    return make_route(RouteOptions(**{**BASE, **options}))["spec"]["rules"]


def test_testers_reach_each_version_by_its_name_on_the_inference_paths_alone():
    canary, stable = rules(stable="v1")
    assert [rule["backendRefs"] for rule in (canary, stable)] == [
        [{"name": "fraud-v2-predictor", "port": 80}],
        [{"name": "fraud-v1-predictor", "port": 80}],
    ]
    assert canary["matches"] == [
        {
            "path": {"type": "Exact", "value": path},
            "headers": [{"name": "X-Serinus-Revision", "type": "Exact", "value": "fraud-v2-predictor"}],
        }
        for path in ("/v2/models/fraud/infer", "/v1/models/fraud:predict")
    ]


def test_a_copy_goes_to_the_canary_and_the_answer_is_stables():
    rule = rules(shadow_percent=20)[-1]
    assert rule["backendRefs"] == [{"name": "fraud-predictor", "port": 80}]
    copy = {"backendRef": {"name": "fraud-v2-predictor", "port": 80}, "percent": 20}
    assert rule["filters"] == [{"type": "RequestMirror", "requestMirror": copy}]
    assert "headers" not in rule["matches"][0]


def test_a_session_keeps_its_version_where_the_route_splits():
    rule = rules(percent=10, affinity="cookie=uid")[-1]
    assert [backend["weight"] for backend in rule["backendRefs"]] == [90, 10]
    assert rule["sessionPersistence"] == {"sessionName": "uid", "type": "Cookie"}
    assert rules(percent=10, affinity="header=x-session")[-1]["sessionPersistence"]["type"] == "Header"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shadow_percent": 101}, "--shadow 101"),
        ({"percent": -1}, "--percent -1"),
        ({"percent": 5, "shadow_percent": 5}, "choose one"),
        ({"affinity": "cookie=uid"}, "say what the canary has"),
        ({"affinity": "uid", "percent": 5}, "cookie=NAME or header=NAME"),
        ({"host": "A B"}, "--host"),
        ({"canary": ""}, "--canary"),
    ],
)
def test_options_that_make_no_route_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        rules(**options)


def test_the_command_prints_the_route_as_yaml(capsys: pytest.CaptureFixture[str]):
    words = ["fraud", "--host", "fraud.example.com", "--canary", "v2", "--shadow", "5", "-n", "prod"]
    assert command(["canary", "route", *words, "--gateway", "edge"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["kind"] == "HTTPRoute"
    assert printed["metadata"] == {"name": "fraud-serinus-canary", "namespace": "prod"}
    assert printed["spec"]["parentRefs"] == [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}]
