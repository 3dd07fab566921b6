"""`serinus lint` reads the annotation of a canary's policy as `serinus canary run` does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serinus.canary.policy import DEFAULT_POLICY
from serinus.cli.policy_annotations import check_policy_annotations
from serinus.local.plan.arm_choice import AFFINITY
from serinus.local.plan.image_commands import LOCAL_CLASS
from serinus.local.plan.storage_spec import LOCAL_STORAGE
from serinus.manifests.documents import load_text
from serinus.manifests.problems import Problem, Problems
from serinus.scaffold.project import write_project

SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: %s
metadata:
  name: a
  annotations:
    %s: %s
"""


def found(name: str, value: str, kind: str = "InferenceService") -> list[Problem]:
    problems = Problems()
    check_policy_annotations(load_text(SERVICE % (kind, name, json.dumps(value)), "f"), problems)
    return list(problems.all)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("steps=5/25/x", "steps"),
        ("step=5/25/100", "did you mean steps"),
        ("errors.margin_percentage_point=1", "margin_percentage_points"),
        ("steps", "a mapping"),
        ("steps: [50, 10]", "steps"),
    ],
)
def test_a_policy_that_the_judge_would_refuse_is_warned_of_where_it_is_written(value: str, words: str):
    told = found("serinus.dev/canary-policy", value)
    assert told
    assert {problem.severity for problem in told} == {"warning"}
    assert {problem.line for problem in told} == {6}
    assert any(words in f"{problem.message}: {problem.mend}" for problem in told), told


@pytest.mark.parametrize("value", ["steps=5/25/100; errors.margin_percentage_points=1; score=off", "", "DEFAULT"])
def test_a_policy_that_the_judge_takes_has_no_finding(value: str):
    text = Path(DEFAULT_POLICY).read_text() if value == "DEFAULT" else value
    assert found("serinus.dev/canary-policy", text) == []


def test_an_annotation_of_ours_that_nothing_reads_is_told_with_the_one_that_was_meant():
    (told,) = found("serinus.dev/canary-polcy", "steps=5/100")
    assert (told.severity, told.layer) == ("warning", "ignored")
    assert told.mend == "did you mean serinus.dev/canary-policy?"
    assert found("example.com/canary-polcy", "steps=5/100") == []
    assert found("serinus.dev/canary-policy", "no policy", kind="ConfigMap") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (AFFINITY, "header: x-user"),
        (LOCAL_CLASS, "model.py:Model"),
        (LOCAL_STORAGE, "../model"),
    ],
)
def test_an_annotation_that_something_of_ours_reads_has_no_finding(name: str, value: str):
    assert found(name, value) == []


def test_what_init_writes_has_no_finding(tmp_path: Path):
    write_project(tmp_path / "churn")
    problems = Problems()
    for path in sorted((tmp_path / "churn").glob("*.yaml")):
        check_policy_annotations(load_text(path.read_text(), path.name), problems)
    assert list(problems.all) == []
