"""The distribution of a model's score is counted where it was declared, and costs a request nothing else."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler, outcomes, rows_of, serving
from serinus import InferRequest, InferResponse, ModelSettings, RequestModel, Tensor
from serinus.cli.serving.options import parse
from serinus.cli.serving.startup_models import find_models
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.dataplane.telemetry.scores import Scores
from serinus.errors import ConfigError
from serinus.loading import settings_from_directory
from serinus.settings import ScoreSettings

SCORE = ScoreSettings(output="y", bins=(1.0, 2.0, 4.0))


def counted(*values: float, rows_a_call: int, bins: tuple[float, ...] = (0.25, 0.5, 1.0)) -> list[int]:
    scores = Scores(ScoreSettings(output="y", bins=bins), "m")
    for start in range(0, len(values), rows_a_call):
        scores.observe({"y": np.array(values[start : start + rows_a_call], np.float32).reshape(-1, 1)})
    return scores.histogram.counts


@pytest.mark.parametrize("rows_a_call", [1, 3, 7, 100])
def test_values_fall_into_the_same_bins_however_many_come_at_once(rows_a_call: int):
    values = [0.0, 0.25, 0.2500001, 0.5, 0.75, 1.0, 1.5, -3.0, math.inf, -math.inf, math.nan, *np.linspace(0, 1, 9)]
    expected = [
        sum(1 for v in values if v <= 0.25),
        sum(1 for v in values if 0.25 < v <= 0.5),
        sum(1 for v in values if 0.5 < v <= 1.0),
        sum(1 for v in values if v > 1.0 or math.isnan(v)),
    ]
    assert counted(*values, rows_a_call=rows_a_call) == expected


@pytest.mark.parametrize(
    ("column", "expected"), [(None, [0, 2, 0]), (0, [2, 0, 0]), (1, [0, 0, 2])], ids=["last", "first", "middle"]
)
def test_a_row_of_several_values_counts_one_of_them(column: int | None, expected: list[int]):
    scores = Scores(ScoreSettings(output="y", bins=(1.0, 10.0), column=column), "m")
    scores.observe({"y": np.array([[0.5, 20.0, 5.0], [0.25, 30.0, 6.0]])})
    assert scores.histogram.counts == expected


@pytest.mark.parametrize(
    "outputs",
    [{}, {"y": np.array([b"text"], dtype=object)}, {"y": np.ones((2, 1))[:, :0]}, {"y": np.array(["a"] * 9)}, None],
    ids=["absent", "bytes", "no columns", "strings", "none"],
)
def test_what_cannot_be_counted_is_told_once_and_counts_nothing(outputs: Any, caplog: pytest.LogCaptureFixture):
    scores = Scores(SCORE, "m")
    with caplog.at_level(logging.WARNING, "serinus.model"):
        scores.observe(outputs)
        scores.observe(outputs)
    assert [record.message[:40] for record in caplog.records] == ["model 'm': output 'y' was declared as it"]
    assert sum(scores.histogram.counts) == 0


async def test_the_page_has_a_histogram_of_the_declared_score_for_each_revision():
    metrics = Metrics("m-00002")
    async with serving(Doubler, ModelSettings(name="m", version="1", score=SCORE), metrics=metrics) as plane:
        await outcomes(plane, rows_of(0.5), rows_of(1, rows=2), rows_of(13), rows_of(9, rows=6))
        page = plane.metrics.render().decode()
    labels = 'model="m",version="1",output="y"'
    tail = ',revision="m-00002"'
    cumulative = [f'serinus_score_bucket{{{labels},le="{le}"{tail}}}' for le in ("1.0", "2.0", "4.0", "+Inf")]
    found = [int(line.rpartition(" ")[2]) for key in cumulative for line in page.splitlines() if line.startswith(key)]
    assert found == [1, 3, 3, 9]
    assert all('revision="m-00002"' in line for line in page.splitlines() if not line.startswith("#"))


async def test_no_series_and_no_label_appear_where_nothing_was_declared():
    async with serving(Doubler) as plane:
        await outcomes(plane, rows_of(1))
        page = plane.metrics.render().decode()
    assert "serinus_score" not in page
    assert "revision" not in page


async def test_scores_of_several_workers_add_up_and_a_dead_ones_are_kept():
    async with serving(Doubler, ModelSettings(name="m", score=SCORE)) as plane:
        await outcomes(plane, rows_of(0.5), rows_of(9))
        snapshot = json.loads(json.dumps(plane.metrics.snapshot()))
    merged = Metrics.merge([snapshot, Metrics.retire(snapshot)])
    assert merged["models"][0]["score"] == ["y", [1.0, 2.0, 4.0], [2, 0, 0, 2], 2 * (1.0 + 18.0)]


class Answers(RequestModel):
    """Answers its input as y."""

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse(request.model_name, [Tensor.of("y", request.inputs[0].data[:, :1])])


async def test_a_model_that_answers_whole_requests_is_counted_too():
    async with serving(Answers, ModelSettings(name="m", score=SCORE)) as plane:
        await outcomes(plane, rows_of(3), rows_of(0.5, rows=2))
        model = plane.metrics.snapshot()["models"][0]
    assert model["score"][2] == [2, 0, 1, 0]


async def test_a_reload_goes_on_counting_and_new_bins_begin_anew():
    async with serving(Doubler, ModelSettings(name="m", score=SCORE)) as plane:
        await outcomes(plane, rows_of(0.5))
        await plane.load("m", {})
        await outcomes(plane, rows_of(0.5))
        statistics = plane.metrics.statistics("m")
        assert statistics.score is not None
        assert statistics.score.histogram.counts == [2, 0, 0, 0]
        assert statistics.count_scores(ScoreSettings(output="y", bins=(1.0,))) is statistics.score
        assert statistics.score.histogram.counts == [0, 0]


async def test_a_score_that_is_no_output_is_refused_at_load():
    with pytest.raises(ConfigError, match="score_output 'z' is none of its outputs, which are y"):
        async with serving(Doubler, ModelSettings(name="m", score=ScoreSettings(output="z"))):
            pass


def test_the_command_line_and_the_models_own_file_declare_a_score(tmp_path: Path):
    words = ["--class", "a:B", "--score_output", "p", "--score_bins", "0.5,1", "--score_column", "0"]
    assert find_models(parse(words, {}), None).models[0].score == ScoreSettings(output="p", bins=(0.5, 1.0), column=0)
    (tmp_path / "model.onnx").write_bytes(b"")
    written = {"name": "m", "implementation": "onnx_server", "score": {"output": "p", "bins": [1, 2.5]}}
    (tmp_path / "model-settings.json").write_text(json.dumps(written))
    assert settings_from_directory(tmp_path)[0].score == ScoreSettings(output="p", bins=(1.0, 2.5))
    assert find_models(parse([str(tmp_path)], {}), None).models[0].score == ScoreSettings(output="p", bins=(1.0, 2.5))
    assert find_models(parse([str(tmp_path), "--score_output", "q"], {}), None).models[0].score == ScoreSettings(
        output="q"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score_bins", "1,2"], "of which output"),
        (["--score_output", "y", "--score_bins", "1,a"], "numbers separated by commas"),
        (["--score_output", "y", "--score_bins", "2,1"], "do not ascend"),
        (["--score_output", "y", "--score_bins", "1,nan"], "do not ascend"),
        (["--score_output", "y", "--score_bins", ",".join(map(str, range(65)))], "1 to 64"),
    ],
    ids=["no output", "no number", "descending", "nan", "too many"],
)
def test_bins_that_are_none_are_refused(words: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        find_models(parse(["--class", "a:B", *words], {}), None)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"bins": [1]}, "needs the name of its output"),
        ({"output": "p", "bin": [1]}, "unknown key 'score.bin'; did you mean 'bins'"),
        ({"output": "p", "bins": [1, "2"]}, "'score.bins' is"),
        ({"output": "p", "bins": []}, "0 score bins"),
        ("p", "'score' is \"p\", an object was expected"),
    ],
    ids=["no output", "typo", "text", "empty", "no object"],
)
def test_a_file_that_declares_a_wrong_score_is_refused(tmp_path: Path, score: Any, message: str):
    (tmp_path / "model.onnx").write_bytes(b"")
    written = {"name": "m", "implementation": "onnx_server", "score": score}
    (tmp_path / "model-settings.json").write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=message):
        settings_from_directory(tmp_path)
