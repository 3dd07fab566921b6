"""Which graphs are batched: the check's verdict on tiny real ones, good and bad."""

from __future__ import annotations

import asyncio
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import grpc
from batching_graphs import BAD, GOOD, TORCH
from deferred import Deferred
from serinus import InferRequest, ModelSettings, Tensor, TensorSpec
from serinus.protocol import _open_inference_pb2 as pb
from serinus.testing import InMemoryClient
from serve_support import serving
from vision_support import plane_of

torch = Deferred("torch")

TORCH_INPUTS = (TensorSpec("x", "FP32", (-1, 4, 3)),)


def settings(folder: Path, implementation: str = "onnx_server", **fields: object) -> ModelSettings:
    return ModelSettings(name="m", implementation=implementation, model_dir=folder, **fields)  # type: ignore[arg-type]


def told(client: InMemoryClient) -> tuple[int, str, str]:
    """Most rows of a batch, and what the metadata says."""
    parameters = client.metadata.parameters
    return client.plane.model_config("m").max_batch_rows, parameters["batching"], parameters["batching_reason"]


@pytest.mark.parametrize("graph", GOOD)
def test_a_graph_of_independent_rows_is_batched(tmp_path, graph):
    with InMemoryClient(settings(GOOD[graph](tmp_path))) as client:
        rows, how, reason = told(client)
        assert (rows, how) == (4096, "joined"), reason


@pytest.mark.parametrize("graph", BAD)
def test_a_graph_whose_rows_depend_on_others_is_not_batched_and_says_why(tmp_path, graph, caplog):
    caplog.set_level("INFO", "serinus.model")
    make, why = BAD[graph]
    with InMemoryClient(settings(make(tmp_path))) as client:
        rows, how, reason = told(client)
        assert (rows, how) == (0, "alone")
        assert re.search(why, reason)
        assert f"each request is predicted alone: {reason}" in caplog.text


def torch_settings(folder: Path, module: torch.nn.Module, **fields: object) -> ModelSettings:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module.eval()).save(str(folder / "model.pt"))
    outputs = (TensorSpec("y", "FP32", (-1,) * module(torch.zeros(2, 4, 3) + 1).ndim),)
    return settings(folder, "torch_server", inputs=TORCH_INPUTS, outputs=outputs, **fields)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", TORCH)
def test_a_torch_module_is_batched_by_what_its_rows_do(tmp_path, case):
    make, why = TORCH[case]
    with InMemoryClient(torch_settings(tmp_path, make())) as client:
        rows, how, reason = told(client)
        assert (rows > 0, how) == ((False, "alone") if why else (True, "joined")), reason
        assert re.search(why, reason)


async def test_concurrent_callers_of_a_recurrent_graph_get_what_they_get_alone(tmp_path):
    make, _ = BAD["lstm time first"]
    async with plane_of(settings(make(tmp_path))) as plane:
        sequences = np.random.default_rng(0).standard_normal((16, 5, 1, 3)).astype(np.float32)
        alone = [await plane.infer(InferRequest("m", [Tensor.of("x", one)])) for one in sequences]
        together = await asyncio.gather(*(plane.infer(InferRequest("m", [Tensor.of("x", one)])) for one in sequences))
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a.outputs[0].data, b.outputs[0].data)


async def test_a_request_of_many_rows_to_a_model_that_is_not_batched_passes_untouched(tmp_path):
    make, _ = BAD["cumsum over axis 0"]
    async with plane_of(settings(make(tmp_path))) as plane:
        x = np.ones((5000, 4), np.float32)  # more than max_batch_rows
        answer = await plane.infer(InferRequest("m", [Tensor.of("x", x)]))
        np.testing.assert_array_equal(answer.outputs[0].data, np.cumsum(x, 0))


@pytest.mark.slow  # importing PyTorch takes ~3 s
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_rows_are_padded_only_where_they_are_independent(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0)

    given = torch_settings(tmp_path, Mean(), extra={"batch_buckets": [8], "device": "cpu"})
    async with plane_of(given) as plane:
        x = np.arange(36, dtype=np.float32).reshape(3, 4, 3)
        answer = await plane.infer(InferRequest("m", [Tensor.of("x", x)]))
        np.testing.assert_allclose(answer.outputs[0].data, x - x.mean(0), atol=1e-5)
        model = plane.registry.find("m").model
        assert not model.batchable
        assert not model.module.batchable  # type: ignore[attr-defined]


@pytest.mark.slow  # two starts of a server
def test_the_verdict_is_told_over_rest_and_grpc_and_kept_for_the_next_start(tmp_path):
    repository = tmp_path / "models"
    GOOD["mlp"](repository / "good")
    BAD["cumsum over axis 0"][0](repository / "bad")
    for start in ("first", "second"):
        (tmp_path / start).mkdir()
        with serving(tmp_path / start, "--model_repository", str(repository)) as server:
            metadata, config, joined = (
                server.ask("GET", f"/v2/models/{path}")[1] for path in ("bad", "bad/config", "good/config")
            )
            reason = metadata["properties"]["batching_reason"]
            assert "differs from its answer alone" in reason
            assert config["max_batch_size"] == 0
            assert config["parameters"] == {"batching_reason": {"string_value": reason}}
            assert config["input"][0]["dims"] == [-1, 4]
            assert joined["max_batch_size"] == 4096
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                ask = channel.unary_unary("/inference.GRPCInferenceService/ModelConfig")
                told, other = (
                    pb.ModelConfigResponse.FromString(ask(pb.ModelConfigRequest(name=name).SerializeToString())).config
                    for name in ("bad", "good")
                )
            assert (told.max_batch_size, told.parameters["batching_reason"].string_value) == (0, reason)
            assert (other.max_batch_size, len(other.parameters)) == (4096, 0)
            again = {"parameters": {"config": json.dumps(config)}}  # what was told can be sent back
            assert server.ask("POST", "/v2/repository/models/bad/load", again)[0] == 200
            checks = server.log.read_text().count("checking whether rows are independent")
            assert checks == (2 if start == "first" else 0)
