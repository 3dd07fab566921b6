"""Traffic of InferenceServices is moved as KServe's own rules want it, each step whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubernetes_server import KubernetesServer, kubernetes, service_object
from serinus.canary.targets.kserve_target import KServeTarget
from serinus.canary.targets.kubeconfig import Access, load_access
from serinus.canary.targets.kubernetes_client import KubernetesClient, Refused
from serinus.canary.targets.service_changes import promoted_predictor
from serinus.canary.targets.target import Action, TargetChanged, TargetFailed
from serinus.errors import ConfigError


def target_of(server: KubernetesServer, **options: Any) -> KServeTarget:
    return KServeTarget(KubernetesClient(Access("127.0.0.1", server.port)), "default", "m", **options)


def knative(server: KubernetesServer) -> None:
    """v1 rolled out, v2 beside it at 0 %."""
    server.put(service_object())
    server.put(service_object(uri="gs://b/v2", canaryTrafficPercent=0))


def entry(percent: int = 0, *, name: str = "v2", **predictor: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "xgboost"}, "storageUri": "gs://b/v2"}
    return {"trafficPercent": percent, "predictor": {"name": name, "model": model, **predictor}}


def standard(server: KubernetesServer, *canaries: dict[str, Any], **predictor: Any) -> None:
    server.put(service_object("Standard", canary=list(canaries) or [entry()], **predictor))


# Knative mode


def test_a_canary_in_knative_mode_goes_up_and_is_promoted_by_removing_the_percentage():
    with kubernetes() as server:
        knative(server)
        target = target_of(server)
        seen = target.state()
        assert (seen.stable, seen.canary, seen.percent, seen.served_percent, seen.ready, seen.problems) == (
            *("m-predictor-00001", "m-predictor-00002", 0, 0, True, ()),
        )
        target.change("percent", 25, seen)
        assert server.service()["status"]["components"]["predictor"]["traffic"][0]["percent"] == 25
        assert target.is_settled("percent", 25)
        change = target.change("promote", 0, target.state())
        assert "canaryTrafficPercent" not in server.service()["spec"]["predictor"]
        assert change.patch == [{"op": "remove", "path": "/spec/predictor/canaryTrafficPercent"}]
        assert target.is_settled("promote", 0)
        after = target.state()
        assert (after.stable, after.canary) == ("m-predictor-00002", "")
        assert server.service()["status"]["_count"] == 2, "moving traffic made a revision"


def test_a_rollback_in_knative_mode_gives_everything_back_and_says_what_the_manifest_still_holds():
    with kubernetes() as server:
        knative(server)
        target = target_of(server)
        target.change("percent", 50, target.state())
        change = target.change("rollback", 0, target.state())
        traffic = server.service()["status"]["components"]["predictor"]["traffic"]
        assert [(each["revisionName"], each["percent"]) for each in traffic] == [
            ("m-predictor-00002", 0),
            ("m-predictor-00001", 100),
        ]
        assert "still describes the version that was rolled back" in change.notes[0]
        assert target.is_settled("rollback", 0)


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([service_object()], "already has all traffic"),
        ([service_object(), service_object(uri="gs://b/v2")], "already has all traffic"),
    ],
    ids=["one version", "rolled out at once"],
)
def test_a_service_without_a_canary_cannot_be_moved_and_says_why(documents: list[dict[str, Any]], said: str):
    with kubernetes() as server:
        for document in documents:
            server.put(document)
        assert said in target_of(server).state().problems[0]


def test_a_new_version_without_a_percentage_that_is_not_ready_is_no_canary_yet():
    with kubernetes() as server:
        server.put(service_object())
        server.ready = False
        server.put(service_object(uri="gs://b/v2"))
        seen = target_of(server).state()
        assert "canaryTrafficPercent is not set" in seen.problems[0]
        assert not seen.ready


# Standard mode


def test_a_canary_in_standard_mode_is_promoted_under_its_name_and_no_pod_restarts():
    with kubernetes() as server:
        standard(server, minReplicas=2, maxReplicas=8, timeout=30)
        target = target_of(server)
        seen = target.state()
        assert (seen.stable, seen.canary, seen.percent, seen.ready, seen.image_only) == (
            *("m-predictor", "m-v2-predictor", 0, True, False),
        )
        before = server.deployments["m-v2-predictor"]
        target.change("percent", 50, seen)
        assert server.service()["spec"]["canary"][0]["trafficPercent"] == 50
        assert target.is_settled("percent", 50)
        target.change("promote", 0, target.state())
        spec = server.service()["spec"]
        assert "canary" not in spec
        assert spec["predictor"]["name"] == "v2"
        assert spec["predictor"]["model"]["storageUri"] == "gs://b/v2"
        assert (spec["predictor"]["minReplicas"], spec["predictor"]["maxReplicas"], spec["predictor"]["timeout"]) == (
            2,
            8,
            30,
        )
        assert server.deployments == {"m-v2-predictor": before}
        assert target.is_settled("promote", 0)


@pytest.mark.parametrize(("action", "percent"), [("percent", 25), ("promote", 0), ("rollback", 0)])
def test_a_change_is_in_force_when_the_controller_has_seen_it_and_not_before(action: Action, percent: int):
    """Its `observedGeneration` does not tell: KServe copies that from the Deployment, which none of these changes."""
    with kubernetes() as server:
        standard(server, minReplicas=2)
        target = target_of(server)
        seen = target.state()
        generation = server.service()["status"]["observedGeneration"]
        server.late = True
        target.change(action, percent, seen)
        assert not target.is_settled(action, percent)
        server.reconcile()
        assert server.service()["status"]["observedGeneration"] == generation
        assert target.is_settled(action, percent)


def test_a_promotion_that_rolls_the_stable_pods_is_not_in_force_before_their_deployment_has_changed():
    newer = entry(25)
    newer["predictor"]["model"] |= {"storageUri": "gs://b/v1", "image": "registry/x:2"}
    with kubernetes() as server:
        standard(server, newer)
        target = target_of(server)
        server.late = True
        target.change("promote", 0, target.state())
        assert not target.is_settled("promote", 0)
        server.reconcile()
        assert target.is_settled("promote", 0)


def test_a_version_that_differs_in_its_image_alone_is_promoted_by_rolling_the_stable_pods():
    newer = entry(25)
    newer["predictor"]["model"] |= {"storageUri": "gs://b/v1", "image": "registry/x:2"}
    with kubernetes() as server:
        standard(server, newer)
        target = target_of(server)
        seen = target.state()
        assert seen.image_only
        assert any("refuses to promote by renaming" in note for note in seen.notes)
        first = target.change("promote", 0, seen)
        assert "whose pods are rolled" in first.words
        spec = server.service()["spec"]
        assert "name" not in spec["predictor"]
        assert spec["predictor"]["model"]["image"] == "registry/x:2"
        assert spec["canary"][0]["trafficPercent"] == 25, "the canary serves on while stable rolls"
        server.ready = False
        server.reconcile()
        assert not target.is_settled("promote", 0)
        server.ready = True
        server.reconcile()
        assert target.is_settled("promote", 0)
        target.change("promote", 0, target.state())
        assert "canary" not in server.service()["spec"]
        assert server.deployments["m-predictor"][1] == 2


def test_a_rollback_in_standard_mode_drops_the_entry_and_leaves_the_others():
    with kubernetes() as server:
        other = entry(10, name="v3")
        standard(server, entry(20), other)
        target = target_of(server, canary="v2")
        target.change("rollback", 0, target.state())
        assert server.service()["spec"]["canary"] == [other]
        assert target_of(server).change("rollback", 0, target_of(server).state()).patch
        assert "canary" not in server.service()["spec"]


def test_the_old_version_is_kept_warm_where_its_predictor_has_a_name():
    with kubernetes() as server:
        standard(server, entry(50), name="v1", minReplicas=2, maxReplicas=4)
        target = target_of(server, keep_warm=True)
        seen = target.state()
        old = server.deployments["m-v1-predictor"]
        target.change("promote", 0, seen)
        spec = server.service()["spec"]
        assert spec["predictor"]["name"] == "v2"
        assert (spec["canary"][0]["trafficPercent"], spec["canary"][0]["predictor"]["name"]) == (0, "v1")
        assert spec["canary"][0]["predictor"]["minReplicas"] == 2
        assert server.deployments["m-v1-predictor"] == old
        target.change("finish", 0, seen)
        assert "canary" not in server.service()["spec"]
        assert server.deployments.keys() == {"m-v2-predictor"}
        assert target.change("finish", 0, seen).patch == ()


def test_a_predictor_without_a_name_cannot_be_kept_warm_and_that_is_said():
    with kubernetes() as server:
        standard(server, entry(50))
        target = target_of(server, keep_warm=True)
        change = target.planned("promote", 0, target.state())
        assert "its predictor has no name" in change.notes[0]


def test_what_a_step_needs_and_who_never_meets_the_canary_is_told():
    with kubernetes() as server:
        standard(server, minReplicas=2, maxReplicas=10)
        target = target_of(server)
        notes = target.state().notes
        assert any("status.address.url (http://m-predictor.default" in note for note in notes)
        change = target.planned("percent", 50, target.state())
        assert change.notes[0].startswith(
            "at 50 % the canary has 1 pod and does not scale; under load that keeps stable at its 10 pods"
        )
        assert change.notes[0].endswith("it would need 5: give the canary minReplicas (at most stable's 2)")


@pytest.mark.parametrize(
    ("canaries", "options", "said"),
    [
        ([entry(), entry(name="v3")], {}, "several entries: v2, v3; name one with --canary"),
        ([entry()], {"canary": "v9"}, "has no entry 'v9'; its entries are v2"),
    ],
    ids=["several", "other name"],
)
def test_which_canary_is_meant_must_be_clear(canaries: list[dict[str, Any]], options: dict[str, Any], said: str):
    with kubernetes() as server:
        standard(server, *canaries)
        assert said in target_of(server, **options).state().problems[0]


TRANSFORMER = {"containers": [{"name": "kserve-container", "image": "t"}]}


@pytest.mark.parametrize(
    ("transformer", "revisions", "refused"),
    [
        (TRANSFORMER, ("m-transformer-00001", "m-transformer-00001"), ""),
        ({**TRANSFORMER, "canaryTrafficPercent": 10}, None, "has a split of its own (canaryTrafficPercent: 10)"),
        (
            TRANSFORMER,
            ("m-transformer-00002", "m-transformer-00001"),
            "from m-transformer-00001 to m-transformer-00002",
        ),
        (None, None, None),
    ],
    ids=["the same for both", "split too", "changes too", "none"],
)
def test_a_canary_beside_a_transformer_is_told_of_or_refused_by_lints_rule_and_the_topology_is_named(
    transformer: dict[str, Any] | None, revisions: tuple[str, str] | None, refused: str | None
):
    with kubernetes() as server:
        knative(server)
        if transformer is not None:
            server.service()["spec"]["transformer"] = transformer
        if revisions is not None:
            latest, rolled = revisions
            told = {"latestCreatedRevision": latest, "latestRolledoutRevision": rolled}
            server.service()["status"]["components"]["transformer"] = told
        seen = target_of(server).state()
        said = seen.problems if refused else seen.notes
        if refused is None:
            assert (seen.problems, seen.notes) == ((), ())
            return
        assert len(said) == 1
        for part in (
            refused,
            "(traffic-percent-beside-transformer)",
            "collocate the transformer",
            "fuse it into one image",
        ):
            assert part in said[0]
        assert bool(seen.problems) == bool(refused)


def test_a_canary_behind_a_split_transformer_cannot_be_moved():
    with kubernetes() as server:
        document = service_object("Standard", canary=[entry()])
        document["spec"]["transformer"] = {"containers": [{"name": "kserve-container", "image": "t"}]}
        server.put(document)
        said = target_of(server).state().problems[0]
        for part in ("behind a split transformer", "(traffic-canary-behind-transformer)", "collocate the transformer"):
            assert part in said


# Concurrency


@pytest.mark.parametrize("mode", ["Knative", "Standard"])
def test_writes_of_the_status_in_between_cost_another_try_and_nothing_else(mode: str):
    with kubernetes() as server:
        knative(server) if mode == "Knative" else standard(server)
        target = target_of(server)
        seen = target.state()
        server.noise = 3
        target.change("percent", 40, seen)
        assert target.state().percent == 40
        server.noise = 1000
        with pytest.raises(TargetFailed, match="written to all the time; nothing was changed"):
            target.change("percent", 50, target.state())
        assert target.state().percent == 40


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            {"predictor": {**service_object(uri="gs://b/v3")["spec"]["predictor"], "canaryTrafficPercent": 0}},
            "generation",
        ),
        (
            {"predictor": {**service_object(uri="gs://b/v2")["spec"]["predictor"], "canaryTrafficPercent": 60}},
            "percentage was 0, and is 60",
        ),
    ],
    ids=["another version", "another percentage"],
)
@pytest.mark.parametrize("action", ["percent", "promote", "rollback"])
def test_nothing_is_decided_on_what_somebody_else_has_changed(edit: dict[str, Any], said: str, action: Any):
    with kubernetes() as server:
        knative(server)
        target = target_of(server)
        seen = target.state()
        server.edit(**edit)
        before = json.dumps(server.service()["spec"])
        with pytest.raises(TargetChanged, match=said):
            target.change(action, 25, seen)
        assert json.dumps(server.service()["spec"]) == before


def test_an_edit_between_reading_and_writing_is_refused_by_the_server_and_seen():
    with kubernetes() as server:
        knative(server)
        target = target_of(server)
        seen = target.state()
        original = target._send

        def late(*arguments: Any) -> None:
            server.edit(predictor={**server.service()["spec"]["predictor"], "canaryTrafficPercent": 77})
            original(*arguments)

        target._send = late  # type: ignore[method-assign] # an edit at the worst moment
        with pytest.raises(TargetChanged, match="and is 77"):
            target.change("percent", 25, seen)
        assert server.service()["spec"]["predictor"]["canaryTrafficPercent"] == 77


def test_a_field_that_a_person_applied_is_taken_over_and_one_of_a_gitops_controller_is_not():
    with kubernetes() as server:
        knative(server)
        target = target_of(server)
        target.change("percent", 10, target.state())
        server.put(service_object(uri="gs://b/v2", canaryTrafficPercent=10), manager="argocd-controller")
        with pytest.raises(Refused, match=r"argocd-controller owns the field .* --decide-only, or --take-over"):
            target.change("percent", 20, target.state())
        assert target.state().percent == 10
        target_of(server, take_over=True).change("percent", 20, target.state())
        assert target.state().percent == 20


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_leaves_nothing_half_done_and_the_change_can_be_asked_for_again(status: int):
    with kubernetes() as server:
        knative(server)
        target = target_of(server)
        seen = target.state()
        server.fail_next = [status]
        with pytest.raises(TargetFailed, match="bad day"):
            target.change("percent", 25, seen)
        assert target.state() == seen
        target.change("percent", 25, seen)
        assert target.state().percent == 25


def test_an_answer_that_is_lost_is_found_out_by_looking_again():
    with kubernetes() as server:
        knative(server)
        target = target_of(server)
        target.change("percent", 10, target.state())
        server.fail_next = [0]
        with pytest.raises(TargetFailed, match="does not answer"):
            target.change("percent", 25, target.state())
        assert target.state().percent == 25


def test_what_kserve_would_refuse_is_said_before_it_is_asked():
    with kubernetes() as server:
        standard(server, entry(60), entry(30, name="v3"))
        target = target_of(server, canary="v2")
        writes = len(server.writes)
        with pytest.raises(Refused, match="the canaries take 110 % together"):
            target.change("percent", 80, target.state())
        assert len(server.writes) == writes


# The record


def test_what_a_controller_keeps_is_beside_the_service_whose_pods_it_does_not_touch():
    with kubernetes() as server:
        standard(server)
        target = target_of(server)
        target.state()
        assert target.load_record() is None
        generations = dict(server.deployments)
        target.save_record({"run": "a", "percent": 10})
        target.save_record({"run": "a", "percent": 25})
        assert target_of(server).load_record() == {"run": "a", "percent": 25}
        kept = server.objects["/api/v1/namespaces/default/configmaps/m-serinus-canary"]
        assert kept["metadata"]["ownerReferences"][0]["uid"] == "u-1"
        assert server.deployments == generations
        target.save_record(None)
        assert target.load_record() is None


def test_two_controllers_cannot_both_write_the_record():
    with kubernetes() as server:
        knative(server)
        one, two = target_of(server), target_of(server)
        one.save_record({"run": "a"})
        two.load_record()
        two.save_record({"run": "b"})
        with pytest.raises(TargetChanged):
            one.save_record({"run": "a", "again": True})


# Pods and access


def test_pods_are_asked_by_their_revision_in_either_mode():
    def pod(name: str, ip: str | None, labels: dict[str, str], **metadata: Any) -> dict[str, Any]:
        own = {"serving.kserve.io/inferenceservice": "m", "component": "predictor", **labels}
        return {"metadata": {"name": name, "labels": own, **metadata}, "status": {"podIP": ip, "phase": "Running"}}

    with kubernetes() as server:
        knative(server)
        server.pods = [
            pod("a", "10.0.0.1", {"serving.knative.dev/revision": "m-predictor-00001", "app": "m-predictor-00001"}),
            pod("b", "fd00::2", {"app": "isvc.m-v2-predictor"}, annotations={"prometheus.io/port": "8082"}),
            pod("c", None, {"app": "isvc.m-predictor"}),
            pod("d", "10.0.0.4", {"app": "isvc.m-predictor"}, deletionTimestamp="2026-01-01T00:00:00Z"),
            pod("e", "10.0.0.5", {"component": "transformer"}),
        ]
        assert [(each.pod, each.url, each.revision) for each in target_of(server).endpoints()] == [
            ("a", "http://10.0.0.1:8080/metrics", "m-predictor-00001"),
            ("b", "http://[fd00::2]:8082/metrics", "m-v2-predictor"),
        ]


def test_no_such_service_and_nobody_there_are_told():
    with (
        kubernetes() as server,
        pytest.raises(TargetFailed, match="there is no InferenceService m in namespace default"),
    ):
        target_of(server).state()
    with pytest.raises(TargetFailed, match="does not answer"):
        target_of(server).state()


def kubeconfig(tmp_path: Path, user: dict[str, Any], server: str = "http://127.0.0.1:1/prefix") -> Path:
    path = tmp_path / "config"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "prod"}}],
        "clusters": [{"name": "k", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(document))
    return path


def test_a_kubeconfig_says_where_and_as_whom(tmp_path: Path):
    found = load_access(kubeconfig(tmp_path, {"token": "t"}))
    assert (found.host, found.port, found.prefix, found.namespace, found.authorization()) == (
        *("127.0.0.1", 1, "/prefix", "prod", "Bearer t"),
    )
    (tmp_path / "token").write_text("from-file\n")
    assert load_access(kubeconfig(tmp_path, {"tokenFile": "token"})).authorization() == "Bearer from-file"
    script = tmp_path / "plugin"
    script.write_text('#!/bin/sh\necho "{\\"status\\": {\\"token\\": \\"from-$1\\"}}"\n')
    script.chmod(0o755)
    plugin = {"exec": {"command": str(script), "args": ["plugin"], "env": None}}
    assert load_access(kubeconfig(tmp_path, plugin)).authorization() == "Bearer from-plugin"
    script.write_text("#!/bin/sh\necho no way >&2\nexit 3\n")
    with pytest.raises(ConfigError, match=r"gave no credentials .status 3.: no way"):
        load_access(kubeconfig(tmp_path, plugin)).authorization()


@pytest.mark.parametrize("token", ["hunter22: x", "'hunter22", "*hunter22", "!hunter22 x", "{hunter22", "@hunter22"])
def test_a_kubeconfig_that_is_damaged_is_told_by_its_place_and_not_its_content(tmp_path: Path, token: str):
    (tmp_path / "config").write_text(f"users:\n- name: a\n  user:\n    token: {token}\n")
    with pytest.raises(
        ConfigError, match=r"config: not YAML: line \d+, column \d+: .*a kubeconfig was expected"
    ) as told:
        load_access(tmp_path / "config")
    assert "hunter22" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "a kubeconfig was expected"),
        ("{", "not YAML"),
        ("current-context: x", "contexts has no context 'x'"),
    ],
)
def test_a_kubeconfig_that_is_none_is_told(tmp_path: Path, text: str, said: str):
    (tmp_path / "config").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_access(tmp_path / "config")


def test_without_any_cluster_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no cluster: give --kubeconfig"):
        load_access(environment={})


def test_several_storage_uris_do_not_allow_a_renaming_and_so_roll_the_stable_pods():
    def several(uri: str) -> dict[str, Any]:
        return {
            "model": {"modelFormat": {"name": "xgboost"}},
            "storageUris": [{"uri": uri, "mountPath": "/mnt/models/a"}],
        }

    with kubernetes() as server:
        document = service_object(
            "Standard", canary=[{"trafficPercent": 50, "predictor": {"name": "v2", **several("gs://b/2")}}]
        )
        document["spec"]["predictor"] = several("gs://b/1")
        server.put(document)
        target = target_of(server)
        assert target.state().image_only
        target.change("promote", 0, target.state())
        assert server.service()["spec"]["predictor"] == several("gs://b/2")
        target.change("promote", 0, target.state())
        assert "canary" not in server.service()["spec"]


def test_the_model_is_called_as_the_arguments_say():
    with kubernetes() as server:
        for arguments, name in (([], "m"), (["--model_name=x"], "x"), (["--model_name", "{{.Name}}"], "m")):
            document = service_object()
            document["spec"]["predictor"]["model"]["args"] = arguments
            server.put(document)
            assert target_of(server).state().model == name


def test_what_is_empty_in_a_canary_overrides_nothing_of_the_stable_predictor():
    stable = {
        "model": {"modelFormat": {"name": "xgboost"}, "storageUri": "gs://b/1", "resources": {"limits": {"cpu": "1"}}}
    }
    empty = {
        "name": "v2",
        "model": {"modelFormat": {"name": ""}, "storageUri": "gs://b/2", "resources": {}},
        "containers": [],
    }
    assert promoted_predictor({**stable, "minReplicas": 3}, {**empty, "minReplicas": 1}) == {
        "model": {**stable["model"], "storageUri": "gs://b/2"},
        "name": "v2",
        "containers": [],
        "minReplicas": 3,
    }
