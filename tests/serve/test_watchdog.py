"""Predicts that hang or hold the event loop, in a whole server: who is told what, and what becomes of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_support import serving
from waiting import wait_until

pytestmark = pytest.mark.slow  # each test starts servers

SUPPORT = Path(__file__).resolve().parents[1] / "support"
HOLDS = '''
import threading
import time

from serinus import Model, TensorSpec


class Holds(Model):
    """Takes as many seconds as it is asked for, and says whether it was on the main thread."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("main", "INT64", (-1,)),)

    def predict(self, inputs, call):
        import numpy as np

        time.sleep(float(inputs["x"].max()))  # what is tested
        return {"main": np.full(len(inputs["x"]), int(threading.current_thread() is threading.main_thread()))}
'''


def body(value: float) -> dict[str, object]:
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]}


def test_a_process_that_hangs_is_restarted_by_the_server(tmp_path: Path):
    environment = {"PYTHONPATH": str(SUPPORT), "STUCK_FOLDER": str(tmp_path)}
    flags = ("--class", "stuck_models:InProcess", "--model_name", "m", "--warmup", "false", "--hang_timeout_s", "1")
    with serving(tmp_path, *flags, environment=environment) as served:
        status, answer = served.ask("POST", "/v2/models/m/infer", body(-1.0))
        assert status == 504
        assert "hang_timeout_s" in answer["error"]
        wait_until(lambda: served.ask("GET", "/v2/health/ready")[0] == 200)
        assert served.ask("POST", "/v2/models/m/infer", body(1.0))[0] == 200
        page = served.ask("GET", "/metrics")[1]
        assert 'serinus_model_hangs_total{model="m",version=""} 1' in page
        assert 'serinus_model_process_restarts_total{model="m",reason="hung",version=""} 1' in page
        assert 'serinus_model_process_restarts_total{model="m",reason="ended",version=""} 0' in page
        assert served.stop() == 0


@pytest.mark.parametrize("execution", ["auto", "inline"])
def test_a_predict_that_holds_the_loop_is_told_with_its_place_and_its_model_leaves_the_loop(
    execution: str, tmp_path: Path
):
    (tmp_path / "holds_model.py").write_text(HOLDS)
    flags = ("--class", "holds_model:Holds", "--model_name", "m", "--execution", execution)
    with serving(tmp_path, *flags, environment={"PYTHONPATH": str(tmp_path)}) as served:
        first = served.ask("POST", "/v2/models/m/infer", body(0.0))[1]
        assert first["outputs"][0]["data"] == [1], "warm-up has found it to be quick"
        assert served.ask("POST", "/v2/models/m/infer", body(3.0))[0] == 200
        after = served.ask("POST", "/v2/models/m/infer", body(0.0))[1]
        assert after["outputs"][0]["data"] == [0]
        wait_until(lambda: "the event loop goes on" in served.log.read_text())
        log = served.log.read_text()
        assert "predict (" in log
        assert "holds_model.py" in log
        assert "it now predicts in a thread" in log
        assert served.ask("GET", "/v2/models/m")[1]["properties"]["execution"] == "thread"
        page = served.ask("GET", "/metrics")[1]
        assert 'serinus_model_moved_total{model="m",version=""} 1' in page
        assert "serinus_loop_held_total 1" in page
