"""A transformer in the process of its model: what the model is given, batches, and which settings exclude each other."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from hosts_support import GRPC, REST, here, rows, serving, text
from serinus.errors import (
    ConfigError,
    InvalidInput,
    NotSupported,
    TimedOut,
)
from serinus.hosts import build_model
from serinus.protocol.types import InferRequest, Tensor
from serinus.settings import ModelSettings, PredictorSettings

kserve = Deferred("kserve")


async def test_a_transformer_without_predictor_says_so():
    async with serving(here("SuperTransformer")) as plane:
        with pytest.raises(NotSupported, match="predictor"):
            await plane.infer(InferRequest("m", [rows([1])], headers=REST))


def image(*values: int) -> str:
    return base64.b64encode(bytes(values)).decode()


@pytest.mark.parametrize("headers", [REST, GRPC], ids=["rest", "grpc"])
async def test_a_fused_transformer_feeds_the_model_in_its_process(headers: dict[str, str]):
    async with serving(here("Pixels"), transformer=here("ImageTransformer")) as plane:
        request = InferRequest("m", [text(image(1, 2), image(200, 200))], id="7", headers=headers)
        response = await plane.infer(request)
        assert response.outputs[0].data.tolist() == [b"dark", b"bright"]
        assert response.id == "7"
        body = json.dumps({"instances": [{"image": {"b64": image(255, 255)}}]}).encode()
        assert await plane.predict_v1("m", body) == {"predictions": [{"label": "bright"}]}


async def test_a_fused_transformer_that_calls_super_predict_reaches_the_model_too():
    async with serving(here("Pixels"), transformer=here("SuperTransformer")) as plane:
        response = await plane.infer(
            InferRequest("m", [Tensor.of("pixels", np.ones((2, 3), np.float32))], headers=REST)
        )
    assert response.output("sum").data.tolist() == [3.0, 3.0]


async def test_rows_of_concurrent_requests_are_one_batch_behind_a_fused_transformer():
    async with serving(here("Pixels"), transformer=here("SuperTransformer")) as plane:
        model: Any = plane.registry.look_up("m-predictor").model
        model.batches.clear()
        one = Tensor.of("pixels", np.ones((1, 3), np.float32))
        answers = await asyncio.gather(*(plane.infer(InferRequest("m", [one], headers=REST)) for _ in range(16)))
        assert [answer.outputs[0].data.tolist() for answer in answers] == [[3.0]] * 16
        assert max(model.batches) > 1


async def test_one_bad_request_spares_its_neighbours_behind_a_fused_transformer():
    async with serving(here("Pixels"), transformer=here("SuperTransformer")) as plane:
        good = InferRequest("m", [Tensor.of("pixels", np.ones((1, 3), np.float32))], headers=REST)
        bad = InferRequest("m", [Tensor.of("pixels", np.ones((3,), np.float32))], headers=REST)
        answers = await asyncio.gather(plane.infer(good), plane.infer(bad), plane.infer(good), return_exceptions=True)
    assert answers[0].outputs[0].data.tolist() == [3.0]
    assert isinstance(answers[1], InvalidInput)
    assert answers[2].outputs[0].data.tolist() == [3.0]


async def test_a_deadline_reaches_the_model_behind_a_fused_transformer():
    async with serving(here("Pixels"), transformer=here("SuperTransformer")) as plane:
        request = InferRequest("m", [Tensor.of("pixels", np.ones((1, 3), np.float32))], headers=REST)
        request.deadline = time.monotonic() - 1
        with pytest.raises(TimedOut):
            await plane.infer(request)


def test_transformer_and_remote_predictor_exclude_each_other():
    settings = ModelSettings(name="m", implementation=here("Pixels"))
    with pytest.raises(ConfigError, match="--predictor_host"):
        build_model(
            settings,
            transformer=here("ImageTransformer"),
            predictor=PredictorSettings(host="127.0.0.1:1"),
        )
    with pytest.raises(ConfigError, match=r"a kserve\.Model was expected"):
        build_model(settings, transformer=here("Pixels"))
