"""The runtime behind the plane: any input name and number type, outputs by name, and explanations off the event loop."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from dataplane_support import serving
from serinus import InferRequest, InferResponse, RequestedOutput, Tensor
from serinus.dataplane.plane import Plane
from serinus.errors import InvalidInput
from serinus.model import Call
from serinus.settings import ModelSettings
from xgboost_server import XGBoostModel
from xgboost_support import rows, save, train


class Watched(XGBoostModel):
    """Notes whether each predict ran on the loop's thread, by the outputs wanted."""

    on_loop: dict[frozenset[str] | None, bool]

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        Watched.on_loop[call.outputs] = threading.current_thread() is threading.main_thread()
        return super().predict(inputs, call)


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))
    Watched.on_loop = {}


def _settings(folder: Path, **extra: object) -> ModelSettings:
    return ModelSettings(name="m", model_dir=folder, extra=extra)


async def _ask(plane: Plane, data: np.ndarray, *outputs: str, name: str = "anything") -> InferResponse:
    wanted = [RequestedOutput(output) for output in outputs]
    return await plane.infer(InferRequest("m", [Tensor.of(name, data)], outputs=wanted))


async def test_any_tensor_name_and_number_type_is_served(tmp_path: Path) -> None:
    booster = train()
    save(booster, tmp_path)
    data = rows(5)
    async with serving(XGBoostModel, _settings(tmp_path)) as plane:
        for name, array in (("input-0", data), ("x", data.astype(np.float64))):
            response = await _ask(plane, array, name=name)
            assert [tensor.name for tensor in response.outputs] == ["predict"]
            np.testing.assert_array_equal(response.outputs[0].data, booster.inplace_predict(data))
        metadata = plane.model_metadata("m")
        assert metadata.parameters["engine"] == "forest"
        assert metadata.inputs[0].shape == (-1, 6)
        with pytest.raises(InvalidInput, match="the model takes 6"):
            await _ask(plane, rows(2, 5))


async def test_booleans_are_taken_as_zero_and_one(tmp_path: Path) -> None:
    booster = train()
    save(booster, tmp_path)
    data = rows(9, missing=0) > 0
    async with serving(XGBoostModel, _settings(tmp_path)) as plane:
        response = await _ask(plane, data)
    np.testing.assert_array_equal(response.outputs[0].data, booster.inplace_predict(data.astype(np.float32)))


@pytest.mark.parametrize("shapes", [(-1,), (-1, 1), None], ids=["n", "n,1", "mixed"])
async def test_columns_of_both_shapes_are_put_side_by_side(shapes: tuple[int, ...] | None, tmp_path: Path) -> None:
    data = rows(7)
    names = ["f0", "f1", "f2", "f3", "f4", "f5"]
    booster = train()
    booster.feature_names = names
    save(booster, tmp_path)
    inputs = [
        Tensor.of(name, column.reshape(shapes or ((-1,), (-1, 1))[index % 2]))
        for index, (name, column) in enumerate(zip(names, np.ascontiguousarray(data.T), strict=True))
    ]
    async with serving(XGBoostModel, _settings(tmp_path, input_form="columns")) as plane:
        assert [spec.shape for spec in plane.model_metadata("m").inputs] == [(-1,)] * 6
        response = await plane.infer(InferRequest("m", inputs))
        np.testing.assert_array_equal(response.outputs[0].data, booster.inplace_predict(data))
        with pytest.raises(InvalidInput, match="has 2 dimensions, the model takes 1"):
            await plane.infer(InferRequest("m", [Tensor.of(name, rows(7, 2)) for name in names]))


async def test_explanations_run_off_the_event_loop_and_predictions_on_it(tmp_path: Path) -> None:
    save(train(), tmp_path)
    async with serving(Watched, _settings(tmp_path)) as plane:
        assert plane.model_metadata("m").parameters["execution"] == "inline"
        await _ask(plane, rows(2))
        response = await _ask(plane, rows(2), "contributions", "margin")
    assert Watched.on_loop[None] is True
    assert Watched.on_loop[frozenset({"contributions", "margin"})] is False
    answers = {tensor.name: tensor.data for tensor in response.outputs}
    np.testing.assert_allclose(answers["contributions"].sum(axis=1), answers["margin"], atol=1e-5)
