"""Which host leads where, and what `status` says of it: no process, no gateway."""

from __future__ import annotations

import dataclasses

import pytest

from local_support import manifest
from serinus.local.plan.container_environment import ConfigData
from serinus.local.plan.deployment_plan import PlanOptions, ServicePlan
from serinus.local.plan.envoy_config import Backend, Endpoint, InnerListener
from serinus.local.plan.planner import Planner
from serinus.local.plan.rollout import Share
from serinus.local.plan.routing_table import JoinedRevision, RoutedService, gateway_table
from serinus.local.plan.status_document import ProcessStatus, ServiceStatus, service_document
from serinus.manifests.documents import load_text
from serinus.manifests.inference_service import parse_inference_service
from serinus.manifests.problems import Problems

FEATURES = ["--predictor_protocol=v2"]


def planned(text: str) -> ServicePlan:
    service = parse_inference_service(load_text(text, "isvc.yaml")[0])
    plan = Planner([], [], ConfigData(), PlanOptions(), Problems()).plan(service)
    assert plan is not None
    return plan


def joined(name: str, digest: str, *, inner_port: int | None = None, leaving: bool = False) -> JoinedRevision:
    backend = Backend(name, (Endpoint(1, 2, "DRAINING" if leaving else "HEALTHY"),))
    return JoinedRevision(backend, digest, 9.0, inner_port, leaving)


OLD = planned(manifest("--tag=1", percent=10, transformer=FEATURES))
NEW = planned(manifest("--tag=2", percent=10, transformer=FEATURES))
SPLIT = RoutedService(
    NEW,
    (
        (Share(NEW.stable.entry.digest, 10, "latest"), NEW.stable),
        (Share(OLD.stable.entry.digest, 90, "prev"), OLD.stable),
    ),
)
REVISIONS = [
    joined("p1", OLD.stable.predictor.digest, inner_port=20100),
    joined("t1", OLD.stable.entry.digest),
    joined("p2", NEW.stable.predictor.digest, inner_port=20101),
    joined("t2", NEW.stable.entry.digest),
]


@pytest.mark.parametrize(
    ("mode", "ports", "alone"),
    [
        ("Standard", "[{name: http, containerPort: 8080}, {name: grpc-v2, containerPort: 8081}]", True),
        ("Standard", "[{name: http, containerPort: 8080}]", False),
        ("Knative", "[{name: http, containerPort: 8080}, {name: grpc-v2, containerPort: 8081}]", False),
    ],
)
def test_a_host_of_standard_mode_with_both_ports_leads_inference_alone_to_grpc(mode: str, ports: str, alone: bool):
    told = f"  annotations: {{serving.kserve.io/deploymentMode: {mode}}}\n"
    text = manifest(annotations=told).replace("image: tiny\n", f"image: tiny\n        ports: {ports}\n")
    plan = planned(text)
    routed = RoutedService(plan, ((Share(plan.stable.entry.digest, 100, "latest"), plan.stable),))
    table = gateway_table([routed], [joined("p", plan.stable.predictor.digest)])
    assert {host.inference_alone for host in table.hosts} == {alone}


def arms(services: list[RoutedService], revisions: list[JoinedRevision]) -> dict[str, dict[str, int]]:
    """Weights of every host, by its first domain's first label."""
    table = gateway_table(services, revisions)
    return {
        host.domains[0].split(".")[0]: {arm.revision: arm.weight for arm in host.arms} for host in table.hosts
    }  # fmt: skip


def test_a_service_its_components_and_its_tags_have_hosts_that_split_as_the_traffic_does():
    assert arms([SPLIT], REVISIONS) == {
        "fraud": {"t2": 10, "t1": 90},
        "fraud-predictor": {"p2": 10, "p1": 90},
        "fraud-transformer": {"t2": 10, "t1": 90},
        "latest-fraud": {"t2": 100},
        "latest-fraud-predictor": {"p2": 100},
        "prev-fraud": {"t1": 100},
        "prev-fraud-predictor": {"p1": 100},
    }


def test_a_host_has_the_names_of_the_templates_and_those_inside_a_cluster():
    host = gateway_table([SPLIT], REVISIONS).hosts[0]
    assert host.name == "service:default/fraud"
    assert host.domains == (
        "fraud.default.localhost",
        "fraud-default.example.com",
        "fraud.default",
        "fraud.default.svc.cluster.local",
    )


def test_only_what_has_joined_and_is_not_leaving_gets_requests():
    assert arms([SPLIT], REVISIONS[:3])["fraud"] == {"t1": 90}
    leaving = [*REVISIONS[:3], dataclasses.replace(REVISIONS[3], leaving=True)]
    assert arms([SPLIT], leaving)["fraud"] == {"t1": 90}
    assert arms([SPLIT], [])["fraud"] == {}
    table = gateway_table([SPLIT], leaving)
    assert [backend.revision for backend in table.backends] == ["p1", "t1", "p2", "t2"], "it finishes what it has"


def test_a_template_that_returns_while_it_drains_gets_requests_again():
    both = [*REVISIONS, joined("t2", NEW.stable.entry.digest, leaving=True)]
    assert arms([SPLIT], both)["fraud"] == {"t2": 10, "t1": 90}


def test_the_same_revision_under_two_tags_gets_both_shares():
    twice = RoutedService(
        NEW, ((SPLIT.chains[0][0], NEW.stable), (Share(NEW.stable.entry.digest, 30, "v2"), NEW.stable))
    )
    assert arms([twice], REVISIONS)["fraud"] == {"t2": 40}


def test_a_service_that_is_starting_has_its_host_and_no_arm():
    hosts = gateway_table([RoutedService(NEW, ())], []).hosts
    assert [host.name for host in hosts] == [
        "service:default/fraud",
        "predictor:default/fraud",
        "transformer:default/fraud",
    ]
    assert all(host.arms == () for host in hosts)


def test_a_predictor_that_a_transformer_calls_has_a_listener_of_its_own():
    assert gateway_table([SPLIT], REVISIONS).inner == (InnerListener(20100, "p1", 9.0), InnerListener(20101, "p2", 9.0))


def test_a_host_that_two_services_claim_is_the_first_ones():
    second = RoutedService(dataclasses.replace(NEW, key="default/other"), SPLIT.chains)
    table = gateway_table([SPLIT, second], REVISIONS)
    domains = [domain for host in table.hosts for domain in host.domains]
    assert len(domains) == len(set(domains))
    assert not any(host.name == "service:default/other" for host in table.hosts)


@pytest.mark.parametrize(("written", "timeout_s"), [("", 60.0), ("    timeout: 5\n", 5.0)])
def test_a_host_has_the_longest_time_of_its_components(written, timeout_s):
    plan = planned(manifest().replace("  predictor:\n", "  predictor:\n" + written))
    table = gateway_table([RoutedService(plan, ((Share(plan.stable.entry.digest, 100, "latest"), plan.stable),))], [])
    assert table.hosts[0].timeout_s == timeout_s


# The status document ------------------------------------------------------------------------------------------------


def process(revision: str, digest: str, **changes: object) -> ProcessStatus:
    fields = {
        "service": "default/fraud", "component": "predictor", "revision": revision, "digest": digest,
        "container": "kserve-container", "pid": 7, "http_port": 1, "grpc_port": 2, "state": "ready", "ready": True, "restarts": 0,
        "last_exit": "", "log": "a.log",
    }  # fmt: skip
    return ProcessStatus(**{**fields, **changes})  # type: ignore[arg-type]


NAMES = {f"default/fraud:{NEW.stable.entry.digest}": "t-2", f"default/fraud:{OLD.stable.entry.digest}": "t-1"}


def document(*, settled: bool = True, ready: dict[str, bool] | None = None, routed: RoutedService = SPLIT) -> dict:
    every = {NEW.stable.entry.digest: True, OLD.stable.entry.digest: True}
    processes = [
        process("p2", NEW.stable.predictor.digest),
        process("old", "gone", state="draining"),
        process("x", "x", service="default/other"),
    ]
    return service_document(
        ServiceStatus(routed, settled, "", 10, {"v2": 5}),
        processes,
        names=NAMES,
        ready=every if ready is None else ready,
        port=8080,
    )


def test_the_status_says_who_gets_which_share_under_which_tag():
    found = document()
    assert found["traffic"] == [
        {"revision": "t-2", "percent": 10, "tag": "latest", "ready": True},
        {"revision": "t-1", "percent": 90, "tag": "prev", "ready": True},
    ]
    assert [(row["revision"], row["traffic"], row["tags"], row["state"]) for row in found["components"]] == [
        ("p2", 10, ["latest"], "ready"),
        ("old", 0, [], "draining"),
    ]
    assert (found["url"], found["model"]) == ("http://fraud.default.localhost:8080", "fraud")
    assert found["hosts"] == ["fraud.default.localhost", "fraud-default.example.com"]
    assert (found["canary_percent"], found["canaries"], found["stopped"]) == (10, {"v2": 5}, False)
    assert found["canary_policy"] == ""


@pytest.mark.parametrize(
    ("changes", "is_ready"),
    [
        ({}, True),
        ({"settled": False}, False),
        ({"ready": {NEW.stable.entry.digest: True}}, False),
        ({"ready": {NEW.stable.entry.digest: True, OLD.stable.entry.digest: False}}, False),
        ({"routed": RoutedService(NEW, ())}, False),
    ],
)
def test_a_service_is_ready_when_it_is_settled_and_all_that_gets_traffic_is_ready(changes, is_ready):
    assert document(**changes)["ready"] is is_ready


def test_a_service_without_shares_has_its_hosts_no_traffic_and_its_own_time_or_a_minute():
    plan = planned(manifest("--tag=1").replace("  predictor:\n", "  predictor:\n    timeout: 7\n"))
    table = gateway_table([RoutedService(plan, ())], [joined("p", plan.stable.predictor.digest)])
    assert [(host.name, [(arm.revision, arm.weight) for arm in host.arms], host.timeout_s) for host in table.hosts] == [
        ("service:default/fraud", [("p", 0)], 7.0),
        ("predictor:default/fraud", [], 60.0),
    ]


@pytest.mark.parametrize(("percent", "told"), [(None, 0), (0, 0), (1, 1), (30, 30), (100, 100)])
def test_the_status_says_how_many_percent_of_the_requests_are_copied(percent: int | None, told: int):
    mirror = None if percent is None else (OLD.stable, percent)
    assert document(routed=dataclasses.replace(SPLIT, mirror=mirror))["mirror"] == told


def test_the_status_names_the_revision_that_is_kept_warm_or_none():
    for warm, told in ((None, ""), (OLD.stable, "t-1"), (NEW.stable, "t-2")):
        status = ServiceStatus(SPLIT, True, "", None, {}, warm)
        found = service_document(status, [], names=NAMES, ready={}, port=1)
        assert (found["warm"], found["canary_percent"], found["components"]) == (told, None, [])


def test_the_status_says_what_is_wrong_with_a_process_and_with_the_service():
    status = ServiceStatus(SPLIT, False, "no room", 10, {})
    looping = process("p2", NEW.stable.predictor.digest, crash_loop=True, last_lines=("a", "b"), restarts=3)
    fine = process("t2", NEW.stable.entry.digest, component="transformer", pid=None)
    found = service_document(status, [looping, fine], names=NAMES, ready={}, port=8080)
    assert (found["kind"], found["problem"], found["settled"], found["ready"]) == (
        "InferenceService",
        "no room",
        False,
        False,
    )
    assert [share["ready"] for share in found["traffic"]] == [False, False]
    assert [
        (row["component"], row["pid"], row["crash_loop"], row["last_lines"], row["restarts"])
        for row in found["components"]
    ] == [("predictor", 7, True, ["a", "b"], 3), ("transformer", None, False, [], 0)]


def test_shares_of_one_revision_add_up_and_have_all_their_tags():
    chains = (
        (Share(NEW.stable.entry.digest, 60, "latest"), NEW.stable),
        (Share(NEW.stable.entry.digest, 5, "v2"), NEW.stable),
        (Share(OLD.stable.entry.digest, 35, "prev"), OLD.stable),
    )
    found = document(routed=RoutedService(NEW, chains))
    assert [(row["revision"], row["traffic"], row["tags"]) for row in found["components"]] == [
        ("p2", 65, ["latest", "v2"]),
        ("old", 0, []),
    ]
