"""The annotation `serinus.dev/local-class`: which class `serinus up` serves where the predictor's image is its author's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from serinus.local.plan.container_environment import config_data
from serinus.local.plan.deployment_plan import ContainerPlan, PlanOptions
from serinus.local.plan.planner import Planner
from serinus.manifests.documents import load_text
from serinus.manifests.inference_service import parse_inference_service
from serinus.manifests.problems import Problems

SERVE = (sys.executable, "-m", "serinus.cli", "serve")
HEAD = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata:\n  name: churn\n"
OWN = "{name: kserve-container, image: 'registry.example.com/churn:1', args: [--workers=2]}"


def planned(
    annotation: str, containers: str, *, transformer: str = "", file: str = "isvc.yaml"
) -> tuple[list[list[ContainerPlan]], list[str]]:
    """Containers of predictor and transformer, and what is wrong."""
    text = HEAD + (f"  annotations: {{serinus.dev/local-class: '{annotation}'}}\n" if annotation else "")
    text += f"spec:\n  predictor: {{containers: [{containers}]}}\n"
    text += f"  transformer: {{containers: [{transformer}]}}\n" if transformer else ""
    documents, problems = load_text(text, file), Problems()
    options = PlanOptions(images={"side": ("side",)})
    plan = Planner([], [], config_data(documents), options, problems).plan(parse_inference_service(documents[0]))
    pods = [] if plan is None else [plan.stable.predictor, plan.stable.transformer]
    return [list(pod.containers) for pod in pods if pod is not None], [problem.message for problem in problems.all]


@pytest.mark.parametrize(
    ("annotation", "file", "expected"),
    [
        ("churn.py:Churn", "isvc.yaml", "churn.py:Churn"),
        ("churn.py:Churn", os.path.join("manifests", "isvc.yaml"), os.path.join("manifests", "churn.py:Churn")),
        ("../src/churn.py:Churn", os.path.join("a", "b.yaml"), os.path.join("a", "../src/churn.py:Churn")),
        ("/opt/churn.py:Churn", os.path.join("a", "b.yaml"), "/opt/churn.py:Churn"),
        ("my.package:Churn", os.path.join("a", "b.yaml"), "my.package:Churn"),
    ],
)  # fmt: skip
def test_the_class_stands_in_for_the_image_and_a_file_is_beside_its_manifest(annotation: str, file: str, expected: str):
    ([container],), problems = planned(annotation, OWN, file=file)
    assert problems == []
    assert container.command.words == SERVE
    assert dict(container.command.env) == {"SERINUS_CLASS": expected}
    assert container.words == (*SERVE, "--workers=2"), "what the manifest says else stays"


@pytest.mark.parametrize("annotation", ["", " "])
def test_without_it_an_image_of_ones_own_is_refused_and_the_annotation_is_named(annotation: str):
    pods, (problem,) = planned(annotation.strip(), OWN)
    assert pods == []
    assert "no image of this project" in problem


def test_only_the_models_container_is_that_class():
    side = "{name: side, image: side}"
    (predictor, transformer), problems = planned("churn.py:Churn", f"{OWN}, {side}", transformer="{image: side}")
    assert problems == []
    assert [container.words[0] for container in predictor] == [sys.executable, "side"]
    assert transformer[0].words[0] == "side"


def test_a_class_of_another_name_is_another_revision(tmp_path: Path):
    def digest(annotation: str) -> str:
        text = (
            HEAD
            + f"  annotations: {{serinus.dev/local-class: '{annotation}'}}\nspec:\n  predictor: {{containers: [{OWN}]}}\n"
        )
        documents = load_text(text, str(tmp_path / "isvc.yaml"))
        plan = Planner([], [], config_data(documents), PlanOptions(), Problems()).plan(
            parse_inference_service(documents[0])
        )
        assert plan is not None
        return plan.stable.predictor.digest

    assert digest("churn.py:Churn") == digest("churn.py:Churn") != digest("churn.py:Other")
