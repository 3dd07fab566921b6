"""Who gets which share: the books after each step, and the split that follows from them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serinus.local.plan.deployment_plan import PlanOptions, service_hosts
from serinus.local.plan.plan_loader import fingerprint, load
from serinus.local.plan.rollout import Rollout, Share, advance, shares, standard_shares

ONE, TWO, BACK = Rollout("1", "1"), Rollout("2", "1"), Rollout("2", "2", "1")


@pytest.mark.parametrize(
    ("books", "newest", "percent", "after"),
    [
        (Rollout(), "1", None, ONE),
        (Rollout(), "1", 10, ONE),
        (Rollout(), "1", 0, ONE),
        (ONE, "2", None, BACK),
        (ONE, "2", 100, BACK),
        (ONE, "2", 101, BACK),
        (ONE, "2", 99, TWO),
        (ONE, "2", 0, TWO),
        (ONE, "1", 10, ONE),
        (ONE, "1", None, ONE),
        (TWO, "2", None, BACK),
        (TWO, "3", 10, Rollout("3", "1", "")),
        (BACK, "2", None, BACK),
        (BACK, "2", 10, Rollout("2", "1", "")),
        (BACK, "2", 0, Rollout("2", "1", "")),
        (BACK, "3", 10, Rollout("3", "2", "1")),
        (BACK, "3", None, Rollout("3", "3", "2")),
    ],
)
def test_the_books_after_a_revision_has_become_ready(books: Rollout, newest: str, percent: int | None, after: Rollout):
    assert advance(books, newest, percent) == after


@pytest.mark.parametrize(
    ("books", "percent", "split"),
    [
        (Rollout(), None, ()),
        (Rollout(), 10, ()),
        (ONE, 10, (Share("1", 100, "latest"),)),
        (ONE, None, (Share("1", 100, "latest"),)),
        (TWO, None, (Share("2", 100, "latest"),)),
        (TWO, 100, (Share("2", 100, "latest"),)),
        (TWO, 101, (Share("2", 100, "latest"),)),
        (TWO, 99, (Share("2", 99, "latest"), Share("1", 1, "prev"))),
        (TWO, 10, (Share("2", 10, "latest"), Share("1", 90, "prev"))),
        (TWO, 0, (Share("2", 0, "latest"), Share("1", 100, "prev"))),
    ],
)
def test_the_split_that_follows(books: Rollout, percent: int | None, split: tuple[Share, ...]):
    assert shares(books, percent) == split


@pytest.mark.parametrize(
    ("canaries", "split"),
    [
        ([], (Share("1", 100, "latest"),)),
        ([("v2", "2", 10)], (Share("1", 90, "latest"), Share("2", 10, "v2"))),
        ([("v2", "2", 10), ("v3", "3", 25)], (Share("1", 65, "latest"), Share("2", 10, "v2"), Share("3", 25, "v3"))),
        ([("v2", "2", 100)], (Share("1", 0, "latest"), Share("2", 100, "v2"))),
    ],
)
def test_each_canary_has_its_share_and_the_stable_track_the_rest(
    canaries: list[tuple[str, str, int]], split: tuple[Share, ...]
):
    assert standard_shares([Share("1", 100, "latest")], canaries) == split
    assert standard_shares([], canaries) == split[1:]


def test_hosts_are_those_of_the_templates_in_lower_case():
    templates = ("{{.Name}}.{{ .Namespace }}.Example", "{{ .Name }}-x", "plain")
    assert service_hosts("Fraud", "Team", templates) == ("fraud.team.example", "fraud-x", "plain")


# What changes a plan

SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: NAME}
spec:
  predictor:
    containers: [{name: kserve-container, image: xgboost_server, env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: k}}}]}]
"""
CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {k: v}\n"


def test_a_fingerprint_changes_with_every_file_that_a_manifest_may_come_from(tmp_path: Path):
    below = tmp_path / "below"
    below.mkdir()
    file = tmp_path / "a.yaml"
    file.write_text("a")
    (tmp_path / "note.txt").write_text("a")
    (below / "b.yml").write_text("b")
    (below / "Kustomization").write_text("c")
    os.utime(file, ns=(5, 7))
    seen = fingerprint(tmp_path)
    assert [Path(name).name for name, _, _ in seen] == ["a.yaml", "Kustomization", "b.yml"]
    assert fingerprint(file) == (seen[0],) == ((str(file), 7, 1),)
    file.write_text("longer")
    os.utime(file, ns=(5, 7))
    assert fingerprint(tmp_path) != seen
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    assert len(fingerprint(tmp_path)) == 3, "what cannot be looked at is passed over"
    assert fingerprint(tmp_path / "none") == ()


def test_a_fingerprint_changes_with_a_base_and_a_component_beside_the_folder(tmp_path: Path):
    service, base, component = (tmp_path / name for name in ("service", "base", "component"))
    for folder, text in {
        service: "resources: [../base, isvc.yaml]\ncomponents: [../component]\n",
        base: "resources: [runtime.yaml]\n",
        component: "patches: [{path: patch.yaml}]\n",
    }.items():
        folder.mkdir()
        (folder / "kustomization.yaml").write_text(text)
    for file in (service / "isvc.yaml", base / "runtime.yaml", component / "patch.yaml"):
        file.write_text("a: b\n")
    seen = [fingerprint(service)]
    assert len(seen[0]) == 6
    for file in (base / "runtime.yaml", component / "patch.yaml", base / "kustomization.yaml"):
        file.write_text(file.read_text() + "# longer\n")
        seen.append(fingerprint(service))
    assert len(set(seen)) == 4
    (base / "kustomization.yaml").write_text("resources: [")
    assert len(fingerprint(service)) >= 2, "what cannot be read forbids no look at the rest"


def test_a_path_and_its_runtimes_are_planned_and_what_is_wrong_leaves_no_plan(tmp_path: Path):
    service, config = tmp_path / "isvc.yaml", tmp_path / "more"
    config.mkdir()
    service.write_text(SERVICE.replace("NAME", "fraud"))
    (config / "config.yaml").write_text(CONFIG + "---\n" + SERVICE.replace("NAME", "other"))
    loaded = load(service, [config], PlanOptions())
    assert loaded.errors == ()
    assert [plan.name for plan in loaded.services] == ["fraud"], "services beside the runtimes are not run"
    assert loaded.services[0].stable.predictor.containers[0].env["A"] == "v"
    alone = load(service, [], PlanOptions())
    assert alone.services == ()
    assert [problem.severity for problem in alone.errors] == ["error"]


@pytest.mark.parametrize("kind", ["InferenceService", "InferenceGraph", "ServingRuntime"])
def test_a_kind_of_that_name_of_another_group_is_not_run(tmp_path: Path, kind: str):
    file = tmp_path / "service.yaml"
    ports = "[{protocol: TCP}]"
    file.write_text(
        f"apiVersion: example.org/v1\nkind: {kind}\nmetadata: {{name: a}}\n"
        f"spec: {{predictor: {{containers: [{{name: kserve-container, ports: {ports}}}]}}, containers: [{{ports: {ports}}}]}}\n"
    )
    loaded = load(file, [], PlanOptions())
    assert loaded.services == ()
    error, unchecked = sorted(loaded.problems, key=lambda problem: problem.severity)
    assert f"{kind} of example.org/v1: not checked" in str(unchecked)
    assert "no InferenceService or InferenceGraph is in it" in str(error)


def test_a_graph_is_planned_beside_a_service_that_is_being_edited_and_is_none_yet(tmp_path: Path):
    graph, beside = tmp_path / "graph.yaml", tmp_path / "beside.yaml"
    graph.write_text(
        "apiVersion: serving.kserve.io/v1alpha1\nkind: InferenceGraph\nmetadata: {name: g}\n"
        "spec: {nodes: {root: {routerType: Sequence, steps: [{serviceUrl: 'http://127.0.0.1:1/v1/models/m:predict', name: a}]}}}\n"
    )
    beside.write_text(
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: a}\n"
        "spec: {predictor: {containers: [{name: kserve-container, image: a, ports: [{protocol: TCP}]}]}}\n"
    )
    loaded = load(graph, [], PlanOptions(), [beside])
    assert [plan.name for plan in loaded.services] == ["g"], loaded.problems


def test_a_path_without_a_service_is_told_so(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    loaded = load(file, [], PlanOptions())
    assert loaded.services == ()
    assert [str(problem) for problem in loaded.errors] == [
        f"{file}:1:kind: no InferenceService or InferenceGraph is in it: give a path that holds one"
    ]
