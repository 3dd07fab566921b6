"""Who goes to which arm: the routes for users' keys, testers and copies, without a gateway."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from local_support import manifest
from serinus.local.plan import envoy_config as envoy
from serinus.local.plan.arm_choice import Affinity, Mirror, Pin, affinity_of, in_order
from serinus.local.plan.container_environment import ConfigData
from serinus.local.plan.deployment_plan import PlanOptions, ServicePlan
from serinus.local.plan.envoy_config import Arm, Backend, Endpoint, Host
from serinus.local.plan.planner import Planner
from serinus.local.plan.rollout import Share
from serinus.local.plan.routing_table import JoinedRevision, RoutedService, gateway_table
from serinus.manifests.documents import load_text
from serinus.manifests.inference_service import parse_inference_service
from serinus.manifests.problems import Problems


def annotated(value: str) -> str:
    return f"  annotations:\n    serinus.dev/affinity: {value}\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("cookie=uid", Affinity("cookie", "uid")), ("header=X-User-Id", Affinity("header", "X-User-Id"))],
)
def test_a_users_key_is_a_cookie_or_a_header(value: str, expected: Affinity):
    problems = Problems()
    service = parse_inference_service(load_text(manifest(annotations=annotated(value)), "isvc.yaml")[0])
    assert affinity_of(service, problems) == expected
    assert str(expected) == value
    assert problems.all == ()


@pytest.mark.parametrize("value", ["uid", "cookie", "cookie=", "ip=x", "header=a b", '"header=a;b"', '"cookie=a=b"'])
def test_an_annotation_that_names_no_key_is_refused_with_its_line(value: str):
    problems = Problems()
    service = parse_inference_service(load_text(manifest(annotations=annotated(value)), "isvc.yaml")[0])
    assert affinity_of(service, problems) is None
    (problem,) = problems.errors
    assert (problem.line, "header=x-user-id" in str(problem)) == (6, True)


@pytest.mark.parametrize("canaries", [["a"], ["a", "b"]])
def test_a_canary_that_grows_takes_users_of_stable_alone(canaries: list[str]):
    def arm_of(bucket: int, weights: dict[str, int]) -> str:
        order = in_order(list(weights), "stable")
        bounds = list(itertools.accumulate(weights[revision] for revision in order))
        return next(revision for revision, bound in zip(order, bounds, strict=True) if bucket < bound)

    weights = {"stable": 100 - 5 * len(canaries), **dict.fromkeys(canaries, 5)}
    for growing in [*canaries, *canaries]:
        after = {**weights, growing: weights[growing] + 20, "stable": weights["stable"] - 20}
        for bucket in range(100):
            before, now = arm_of(bucket, weights), arm_of(bucket, after)
            assert now == before or (before, now) == ("stable", growing)
        weights = after


HOST = Host(
    "service:a",
    ("a.x",),
    (Arm("a-00002", 10), Arm("a-00001", 90)),
    5.0,
    pins=(Pin("x-serinus-revision", "a-00002", "a-00002"), Pin("knative-serving-tag", "prev", "a-00001")),
    affinity=Affinity("header", "X-User", "default/a a-00001"),
    mirror=Mirror("a-00003", 20),
)


def routes(host: Host) -> list[dict]:
    (table,) = envoy.routes([host])
    return table["virtual_hosts"][0]["routes"]


def test_a_testers_word_comes_before_the_split_and_is_neither_hashed_nor_copied():
    found = routes(HOST)
    assert len(found) == 6
    for (kind, pin), route in zip(itertools.product(HOST.pins, ("grpc", "http")), found, strict=False):
        pin, kind = kind, pin
        assert route["match"]["headers"][-1] == {"name": pin.header, "string_match": {"exact": pin.value}}
        (one,) = route["route"]["weighted_clusters"]["clusters"]
        assert one["name"] == f"{pin.revision}/{kind}"
        assert "header_name" not in route["route"]["weighted_clusters"]
        assert "request_mirror_policies" not in route["route"]
        assert "typed_per_filter_config" not in route


def test_a_key_is_hashed_where_a_request_is_split_and_its_number_goes_no_further():
    for route in routes(HOST)[-2:]:
        assert route["route"]["weighted_clusters"]["header_name"] == "x-serinus-bucket"
        assert route["request_headers_to_remove"] == ["x-serinus-bucket"]
        told = route["metadata"]["filter_metadata"]["envoy.filters.http.lua"]
        assert told == {"kind": "header", "name": "x-user", "salt": "default/a a-00001"}
        assert "envoy.filters.http.lua" in route["typed_per_filter_config"]


def test_a_copy_goes_to_the_canarys_port_of_the_same_kind_under_the_same_host():
    for kind, route in zip(("grpc", "http"), routes(HOST)[-2:], strict=True):
        (policy,) = route["route"]["request_mirror_policies"]
        assert policy["cluster"] == f"a-00003/{kind}"
        assert policy["runtime_fraction"]["default_value"] == {"numerator": 20, "denominator": "HUNDRED"}
        assert policy["disable_shadow_host_suffix_append"] is True


def test_a_service_without_affinity_pays_for_no_filter():
    plain = routes(dataclasses.replace(HOST, affinity=None, mirror=None, pins=()))
    assert len(plain) == 2
    for route in plain:
        assert not {"metadata", "typed_per_filter_config", "request_headers_to_remove"} & route.keys()
        assert "header_name" not in route["route"]["weighted_clusters"]


def planned(*args: str) -> ServicePlan:
    text = manifest(*args, percent=0, transformer=["--predictor_protocol=v2"], annotations=annotated("cookie=uid"))
    plan = Planner([], [], ConfigData(), PlanOptions(), Problems()).plan(
        parse_inference_service(load_text(text, "isvc.yaml")[0])
    )
    assert plan is not None
    return plan


def test_testers_reach_a_canary_without_traffic_and_copies_go_to_the_services_own_host_alone():
    old, new = planned("--tag=1"), planned("--tag=2")
    chains = (
        (Share(new.stable.entry.digest, 0, "latest"), new.stable),
        (Share(old.stable.entry.digest, 100, "prev"), old.stable),
    )
    revisions = [
        JoinedRevision(Backend(name, (Endpoint(1, 2, "HEALTHY"),)), component.digest, 9.0, None, leaving=False)
        for name, component in (
            ("p1", old.stable.predictor),
            ("t1", old.stable.entry),
            ("p2", new.stable.predictor),
            ("t2", new.stable.entry),
        )
    ]
    table = gateway_table([RoutedService(new, chains, (new.stable, 30))], revisions)
    hosts = {host.domains[0].split(".")[0]: host for host in table.hosts}
    service = hosts["fraud"]
    assert [(arm.revision, arm.weight) for arm in service.arms] == [("t2", 0), ("t1", 100)]
    assert [(pin.header, pin.value, pin.revision) for pin in service.pins] == [
        ("x-serinus-revision", "t2", "t2"),
        ("knative-serving-tag", "latest", "t2"),
        ("x-serinus-revision", "t1", "t1"),
        ("knative-serving-tag", "prev", "t1"),
    ]
    assert service.mirror == Mirror("t2", 30)
    assert service.affinity == Affinity("cookie", "uid", f"default/fraud {old.stable.entry.digest}")
    assert hosts["fraud-predictor"].affinity == service.affinity, "the same user, the same arm, whichever host is asked"
    assert [name for name, host in hosts.items() if host.mirror] == ["fraud"]
    assert all(
        host.affinity is None and not host.pins for name, host in hosts.items() if name.startswith(("latest", "prev"))
    )
