"""Models that predict in a process of their own: found there, missed when they end, refused where they cannot travel."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import numpy as np
import pytest

from dataplane_processes import Exits, Isolated, Missing
from dataplane_support import outcome, outcomes, request_of, rows_of, serving
from serinus import InferResponse, ModelSettings
from serinus.errors import ConfigError, ModelFailed
from waiting import until

pytestmark = pytest.mark.slow  # each starts processes


async def test_a_process_predicts_elsewhere_and_describes_its_model():
    async with serving(Isolated, ModelSettings(name="m", instances=2)) as plane:
        answers = await outcomes(plane, rows_of(1, 3), rows_of(2, 1))
        assert [answer.outputs[0].data[0, 0] for answer in answers] == [2, 4]
        pid = int(answers[0].outputs[1].data[0])
        assert pid != os.getpid()
        parameters = plane.model_metadata("m").parameters
        assert parameters["execution"] == "process"
        assert parameters["made_in"] != os.getpid()
        big = -np.arange(2_000_000, dtype=np.float32).reshape(-1, 2)
        answer = await outcome(plane, request_of(x=big))
        assert np.array_equal(answer.outputs[0].data, big * 2)
    await until(lambda: not os.path.exists(f"/proc/{pid}"))


async def test_a_request_that_kills_the_process_fails_alone_and_the_process_comes_back(caplog: Any):
    async with serving(Isolated) as plane:
        before = await outcome(plane, rows_of(1))
        answers = await outcomes(plane, rows_of(1), rows_of(66), rows_of(2))
        assert [type(answer) for answer in answers] == [InferResponse, ModelFailed, InferResponse]
        assert str(answers[1]) == "model 'm': its process ended while it predicted (exit status 7)"
        after = await outcome(plane, rows_of(3))
        assert after.outputs[1].data[0] != before.outputs[1].data[0]
        raised = await outcome(plane, rows_of(44))
        assert isinstance(raised, ModelFailed)
        assert "lambda" not in str(raised)
    assert "Unpicklable: lambda inside" in caplog.text


async def test_a_process_that_takes_long_to_end_is_left_to_the_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serinus.dataplane.execution.process_pool._STOP_S", 0)
    async with serving(Isolated) as plane:
        pid = int((await outcome(plane, rows_of(1))).outputs[1].data[0])  # type: ignore[union-attr] # it is answered
        pool = plane.registry.find("m")._processes  # type: ignore[attr-defined] # of an ArrayServable
        pool.close()
    await until(lambda: not any(child.pid == pid for child in multiprocessing.active_children()))  # which reaps


async def test_a_model_that_does_not_load_in_its_process_says_why():
    with pytest.raises(ConfigError, match="no such file"):
        async with serving(Missing):
            pass
    with pytest.raises(ModelFailed, match="exit status 9"):
        async with serving(Exits):
            pass


async def test_a_factory_that_does_not_travel_is_refused_with_the_reason():
    with pytest.raises(ModelFailed, match="do not travel"):
        async with serving(lambda settings: Isolated(settings)):
            pass
