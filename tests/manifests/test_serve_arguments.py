"""Arguments of our own images in a manifest, before the container exits on them in the cluster."""

from __future__ import annotations

import pytest

from serinus.cli.serving.serve_arguments import check_serve_arguments
from serinus.manifests.documents import load_text
from serinus.manifests.problems import Problems

SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: a}
spec:
  predictor:
    containers: [{name: kserve-container, image: %s, %s}]
"""


def found(image: str, fields: str) -> list[tuple[str, str, str]]:
    problems = Problems()
    check_serve_arguments(load_text(SERVICE % (image, fields), "f"), problems)
    at = "spec.predictor.containers[0]."
    return [
        (problem.severity, problem.field.removeprefix(at), f"{problem.message}: {problem.mend}")
        for problem in problems.all
    ]


@pytest.mark.parametrize(
    ("fields", "severity", "field", "words"),
    [
        ("args: [--model_name=a, --max_queue_row=3]", "error", "args[1]", "did you mean --max-queue-rows"),
        ("args: [--max_queue_rows, many]", "error", "args[0]", "max_queue_rows"),
        ("args: [--max_queue_row, $(ROWS)]", "error", "args[0]", "is not a flag"),
        ("env: [{name: SERINUS_MAX_QUEUE_ROW, value: '3'}]", "error", "env[0]", "is not a setting"),
        ("args: [--enable_latency_logging]", "warning", "args[0]", "no effect"),
    ],
)
def test_what_ends_or_does_not_move_the_server_is_told(fields: str, severity: str, field: str, words: str) -> None:
    (one,) = found("registry:5000/xgboost_server:1", fields)
    assert one[:2] == (severity, field)
    assert words in one[2]


@pytest.mark.parametrize(
    ("image", "fields"),
    [
        ("xgboost_server", "args: ['--model_name={{.Name}}', --max_queue_rows, $(ROWS), --model_dir=/mnt/models]"),
        ("xgboost_server", "env: [{name: SERINUS_MAX_QUEUE_ROWS, value: '3'}, {name: ANY, value: x}]"),
        ("xgboost_server", "command: [python], args: [--x]"),
        ("somebody/else", "args: [--max_queue_row=3]"),
        ("ensemble_server-fraud_features", "args: [--max_queue_rows=3]"),
    ],
)
def test_what_the_server_takes_and_other_images_have_no_finding(image: str, fields: str) -> None:
    assert found(image, fields) == []
