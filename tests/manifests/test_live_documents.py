"""What kubectl is asked for the objects of a cluster, and what is made of its answers; a script stands in for kubectl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serinus.errors import ConfigError
from serinus.manifests.documents import Document, load_text
from serinus.manifests.kustomization import live_documents

SCRIPT = """#!/bin/sh
echo "$@" >>{folder}/asked
cat {folder}/answer
cat {folder}/words >&2
exit $(cat {folder}/status)
"""


def document(version: str = "serving.kserve.io/v1beta1", kind: str = "InferenceService", **metadata: Any) -> Document:
    value = {"apiVersion": version, "kind": kind, "metadata": {"name": "a", **metadata}, "spec": {"x": 1}}
    (found,) = load_text(yaml.safe_dump(value), "a.yaml")
    return found


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Have kubectl answer so; gives the file of what it was asked."""

    def answers(text: str, *, words: str = "", status: int = 0) -> Path:
        for name, content in (("answer", text), ("words", words), ("status", str(status))):
            (tmp_path / name).write_text(content)
        script = tmp_path / "kubectl"
        script.write_text(SCRIPT.format(folder=tmp_path))
        script.chmod(0o755)
        monkeypatch.setattr("serinus.manifests.kustomization._kubectl", lambda: str(script))
        return tmp_path / "asked"

    return answers


LIVE = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: a, namespace: live}\nspec: {x: 2}\n"


@pytest.mark.parametrize(
    ("asked_for", "words"),
    [
        (document(), "get InferenceService.serving.kserve.io a --ignore-not-found -o yaml"),
        (document(namespace="n"), "get InferenceService.serving.kserve.io a --ignore-not-found -o yaml --namespace n"),
        (document("v1", "Secret"), "get Secret a --ignore-not-found -o yaml"),
        (document("apps/v1", "Deployment"), "get Deployment.apps a --ignore-not-found -o yaml"),
    ],
)
def test_an_object_is_asked_for_by_its_kind_and_group_and_its_own_namespace(
    asked_for: Document, words: str, kubectl: Callable[..., Path]
):
    asked = kubectl(LIVE)
    live_documents([asked_for])
    assert asked.read_text() == words + "\n"


def test_what_is_there_is_compared_under_the_name_that_was_asked_for(kubectl: Callable[..., Path]):
    kubectl(LIVE)
    here, there = document(), document(namespace="n")
    found = live_documents([here, there])
    assert [(one.name, one.namespace, one.value["spec"]) for one in found] == [
        ("a", here.namespace, {"x": 2}),
        ("a", "n", {"x": 2}),
    ]
    assert {one.file for one in found} == {"<live>"}


def test_what_is_not_there_is_left_out(kubectl: Callable[..., Path]):
    kubectl("")
    assert live_documents([document()]) == []
    assert live_documents([]) == []


def test_what_kubectl_says_of_a_failure_is_told(kubectl: Callable[..., Path]):
    kubectl("", words="no such context\n", status=1)
    with pytest.raises(ConfigError) as refused:
        live_documents([document()])
    assert str(refused.value) == "kubectl could not read InferenceService a: no such context"


@pytest.mark.parametrize(
    "hostile",
    [
        document(name="--server=http://evil.example"),
        document(name="-o=go-template"),
        document(name="a,b"),
        document(name="a/b"),
        document(name="a b"),
        document(name=""),
        document(kind="--server=http://evil.example"),
        document("--server=http://evil/v1"),
        document(namespace="--token=x"),
    ],
    ids=lambda each: f"{each.api_version} {each.kind} {each.namespace} {each.name}",
)
def test_a_manifest_gives_kubectl_no_option(hostile: Document, kubectl: Callable[..., Path]):
    asked = kubectl(LIVE)
    assert [one.name for one in live_documents([hostile, document()])] == ["a"]
    assert len(asked.read_text().splitlines()) == 1


def test_names_of_rbac_are_asked_for(kubectl: Callable[..., Path]):
    asked = kubectl(LIVE)
    live_documents([document("rbac.authorization.k8s.io/v1", "Role", name="system:a-b.c")])
    assert "Role.rbac.authorization.k8s.io system:a-b.c " in asked.read_text()
