"""A policy that an InferenceService brings along judges its canaries, unless another is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubernetes_server import kubernetes, service_object
from serinus.canary.policy import DEFAULT_POLICY, load_policy
from serinus.canary.policy_annotation import POLICY_ANNOTATION, parse_annotation
from serinus.cli.operator import run as command
from serinus.errors import ConfigError


def test_the_text_is_a_policys_yaml():
    assert parse_annotation(DEFAULT_POLICY.read_text(), "prod/m") == load_policy()


@pytest.mark.parametrize(
    ("text", "read", "expected"),
    [
        ("steps=5/25/100", lambda p: p.steps, (5.0, 25.0, 100.0)),
        ("level=0.01; promotion_level = 0.02", lambda p: (p.level, p.promotion_level), (0.01, 0.02)),
        ("errors.margin_percentage_points=1,score=off", lambda p: (p.errors.margin, p.score), (0.01, None)),
        ("latency.quantile=.95\nminimum.canary_requests=500", lambda p: (p.latency.quantile, p.minimum_requests), (0.95, 500)),
        ("maximum.then=rollback;", lambda p: p.at_maximum, "rollback"),
        ("rates.clicks.better=higher; rates.clicks.margin_percentage_points=0.2", lambda p: p.rates["clicks"].margin, 0.002),
        ("means.value.better=higher; means.value.margin_percent=2; means.value.bounds=0/5", lambda p: p.means["value"].bounds, (0, 5)),
        ("guardrails.errors.required=true", lambda p: p.errors.required, True),
    ],
)  # fmt: skip
def test_the_short_form_says_what_differs_from_the_default(text: str, read: object, expected: object):
    assert callable(read)
    assert read(parse_annotation(text, "prod/m")) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps=5/25", "100 the last"),
        ("levl=0.01", "did you mean level"),
        ("level=0.01; errors", "KEY=VALUE was expected"),
        ("level=", "KEY=VALUE was expected"),
        ("level..x=1", "KEY=VALUE was expected"),
        ("level.x=1", "level has one value"),
        ("errors=off; latency=off; score=off", "guardrails"),
        ("errors.margin_percentage_points=many", "is 'many'"),
        ("level: [", "annotation serinus.dev/canary-policy of prod/m"),
        ("just words", "annotation serinus.dev/canary-policy of prod/m"),
        ("a: &a [*a]", "annotation serinus.dev/canary-policy of prod/m"),
    ],
)
def test_what_is_no_policy_is_refused_and_names_the_annotation(text: str, said: str):
    with pytest.raises(ConfigError, match=POLICY_ANNOTATION) as refused:
        parse_annotation(text, "prod/m")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "options", "status", "percent"),
    [
        ("steps=7/100", [], 12, 7),
        ("steps=7/100", ["--policy", "policy.yaml"], 12, 10),
        (None, [], 12, 10),
        ("stepz=7/100", [], 1, 0),
    ],
    ids=["annotation", "another is given", "none", "no policy"],
)
def test_a_run_takes_the_services_policy_unless_another_is_given(
    tmp_path: Path, text: str | None, options: list[str], status: int, percent: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(DEFAULT_POLICY.read_text())
    with kubernetes() as server:
        for uri in ("gs://b/v1", "gs://b/v2"):
            document = service_object(uri=uri, **({"canaryTrafficPercent": 0} if uri == "gs://b/v2" else {}))
            if text is not None:
                document["metadata"]["annotations"][POLICY_ANNOTATION] = text
            server.put(document)
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k"}}],
            "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        words = ["--kubeconfig", "kubeconfig", "--interval", "0.1", "--for", "0.2", "-o", "json"]
        assert command(["canary", "run", "m", *words, *options]) == status
        assert server.service()["spec"]["predictor"]["canaryTrafficPercent"] == percent
