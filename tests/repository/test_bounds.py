"""Every number that sizes something has a bound, and LIMITS.md tells it: the tables are held to the code, each bound is tried."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import re
import threading
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import ensemble_support
import grpc
from deferred import Deferred
from grpc_support import ENGINES, Sum
from grpc_support import serving as serving_grpc
from rest_support import MODELS, X, rest
from serinus import Model, ModelSettings, TensorSpec
from serinus.artifacts import read_labels
from serinus.bounds import BOUNDS, ModelBounds
from serinus.cli.serving.option_table import OPTIONS
from serinus.cli.serving.options import parse
from serinus.cli.serving.serve import _server_settings
from serinus.cli.serving.startup_models import _of_paths
from serinus.client.predictor_errors import retry_seconds
from serinus.dataplane.batching.deadlines import Deadlines
from serinus.dataplane.overrides import overridden
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.dataplane.sizes import check_settings
from serinus.errors import ConfigError, InvalidInput, Overloaded
from serinus.loading import settings_from_directory
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol.types import Limits
from serinus.settings import BatchSettings, ServerSettings
from serinus.testing import InMemoryClient

xgboost = Deferred("xgboost")
Ensemble = Deferred("ensemble_server", "Ensemble")

LIMITS = Path(__file__).resolve().parents[2] / "runtimes" / "serinus" / "LIMITS.md"


def table(title: str) -> dict[str, list[str]]:
    """The rows of the table below a heading, by their first cell."""
    section = LIMITS.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return {row[0]: row for row in rows[2:]}


SETTINGS = {row[0].split("`")[1]: row for row in table("Settings").values()}
OPTION_OF = {"threads": "nthread"}
BY_NAME = {option.name: option for option in OPTIONS}
RANK = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
OTHER_RANGES = {
    "max_rank": (1, RANK),
    "max_json_depth": (1, 1024),
    **dict.fromkeys(("http_port", "grpc_port", "metrics_port", "health_port"), (0, 65535)),
}
"""Bounds that are not ours, and so not in the table of the code."""


def numeric(kind: Any) -> bool:
    parts = set(typing.get_args(kind)) or {kind}
    return bool(parts & {int, float}) and bool not in parts


def defaults() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in (ServerSettings, BatchSettings, ModelSettings):
        hints = typing.get_type_hints(kind)
        found |= {spec.name: spec.default for spec in dataclasses.fields(kind) if numeric(hints[spec.name])}
    return found


def test_the_table_has_every_number_that_can_be_set():
    options = {option.name for option in OPTIONS if numeric(option.kind)}
    names = {OPTION_OF.get(name, name) for name in SETTINGS}
    assert options - names == set()
    assert defaults().keys() - SETTINGS.keys() == set()
    assert SETTINGS.keys() == BOUNDS.keys() | OTHER_RANGES.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_row_of_the_table_is_what_the_code_has(name: str):
    _, _, default, least, most, raised_by = SETTINGS[name]
    known = defaults()
    value = known[name] if name in known else BY_NAME[name].default
    assert (None if default == "none" else float(default)) == value
    if name in OTHER_RANGES:
        assert (int(least), int(most)) == OTHER_RANGES[name] if RANK == 64 or name != "max_rank" else int(least) == 1
    else:
        assert (float(least), float(most)) == (BOUNDS[name].least, BOUNDS[name].most)
        assert raised_by.strip("`") == BOUNDS[name].raised_by


def started(*words: str) -> ModelSettings:
    """Check settings as `serinus serve` does before it serves, but for the model itself."""
    parsed = parse(["--class", "somewhere:Model", *words], {})
    server = _server_settings(parsed.values)
    (settings,) = _of_paths([], parsed, None)
    check_settings(settings, ModelBounds(instances=server.max_instances))
    return settings


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "default_priority"])
def test_a_setting_at_its_bound_is_taken_and_one_beyond_it_is_refused_by_name(name: str):
    flag = OPTION_OF.get(name, name)
    least, most = OTHER_RANGES.get(name) or (BOUNDS[name].least, BOUNDS[name].most)
    for good in (least, most):
        started(f"--{flag}={good:.0f}")
    for bad in (f"{most + 1:.0f}", f"{least - 1:.0f}", "1" + "0" * 30, "1" + "0" * 400, "nan"):
        with pytest.raises(ConfigError, match=flag):
            started(f"--{flag}={bad}")
    if BY_NAME[flag].kind in (float, float | None):
        for bad in ("inf", "1e300", "-inf", "-1e-9"):
            with pytest.raises(ConfigError, match=flag):
                started(f"--{flag}={bad}")


def test_the_owner_raises_the_instances_and_nobody_else_beyond_that():
    assert started("--instances=65", "--max_instances=65").instances == 65
    with pytest.raises(ConfigError, match="max_instances raises it"):
        started("--instances=66", "--max_instances=65")


@pytest.mark.parametrize("value", [1e300, math.inf, math.nan, -1, 10**400, 2.5], ids=str)
@pytest.mark.parametrize("where", ["settings.json", "model-settings.json"])
def test_a_number_of_a_file_is_held_to_its_bound(tmp_path: Path, where: str, value: float):
    """json reads NaN, Infinity and integers of any length."""
    for name in ("instances", "threads", "max_queue_rows", "max_batch_rows", "max_delay_s", "priority_levels"):
        if name == "max_delay_s" and value == 2.5:
            continue
        if where == "settings.json":
            if value == 2.5:  # read as 2
                continue
            (tmp_path / where).write_text(json.dumps({OPTION_OF.get(name, name): value}))
            with pytest.raises(ConfigError, match=OPTION_OF.get(name, name)):
                started("--settings", str(tmp_path / where))
            continue
        if name == "instances" and value == -1:  # read as 1
            continue
        own = {name: value} if name in ("instances", "threads") else {"batch": {name: value}}
        (tmp_path / where).write_text(json.dumps({"name": "m", "implementation": "xgboost_server", **own}))
        with pytest.raises(ConfigError, match=name):
            (settings,) = settings_from_directory(tmp_path)
            check_settings(settings, ModelBounds())


def test_the_default_level_is_one_of_256():
    with pytest.raises(ConfigError, match="default_priority"):
        check_settings(ModelSettings(name="m", batch=BatchSettings(default_priority=257)), ModelBounds())


# Load requests

CONFIGS: dict[str, tuple[Any, str]] = {
    "load: `config.instance_group.count`, and their sum": ({"instance_group": [{"count": 65}]}, "max_instances"),
    "load: `config.max_batch_size`": ({"max_batch_size": 1048577}, "max_batch_rows"),
    "load: `config.dynamic_batching.max_queue_delay_microseconds`": (
        {"dynamic_batching": {"max_queue_delay_microseconds": 60_000_001}},
        "max_delay_s",
    ),
    "load: `config.dynamic_batching.priority_levels`": (
        {"dynamic_batching": {"priority_levels": 257}},
        "priority_levels",
    ),
    "load: `config.dynamic_batching.default_queue_policy.default_timeout_microseconds`": (
        {"dynamic_batching": {"default_queue_policy": {"default_timeout_microseconds": 604_800_000_001}}},
        "default_timeout_s",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_load_request_is_held_to_the_bounds(name: str):
    config, setting = CONFIGS[name]
    row = table("Requests")[name]
    assert row[1].replace(" ", "").isdigit()
    assert row[3] == f"400 `{setting}`"
    with pytest.raises(InvalidInput, match=setting):
        overridden(ModelSettings(name="m"), json.dumps(config))
    one_less = json.dumps(config).replace(str(int(row[1]) + 1), row[1])
    assert one_less != json.dumps(config)
    overridden(ModelSettings(name="m"), one_less)


@pytest.mark.parametrize("count", [65, 10**9, 2**63, [33, 32], [64, 64, 64]], ids=str)
async def test_a_load_request_for_any_number_of_instances_starts_no_thread(count: Any):
    groups = [{"count": one} for one in (count if isinstance(count, list) else [count])]
    body = {"parameters": {"config": json.dumps({"instance_group": groups})}}
    async with rest("row") as server:
        before = threading.active_count()
        answer = await server.ask("POST", "/v2/repository/models/row/load", body)
        assert answer.status == 400
        assert "max_instances" in answer.json["error"]
        assert threading.active_count() <= before + 1
        assert (await server.ask("POST", "/v2/models/row/infer", X)).status == 200


async def test_the_setting_moves_what_a_load_request_may_ask_for():
    def make(settings: ModelSettings) -> Model:
        return MODELS["row"](settings)

    plane = Plane(Registry(make, bounds=ModelBounds(instances=3)))
    await plane.start([ModelSettings(name="m", warmup=False)])
    try:
        await plane.load("m", {"config": '{"instance_group": [{"count": 3}]}'})
        with pytest.raises(InvalidInput, match="max_instances"):
            await plane.load("m", {"config": '{"instance_group": [{"count": 4}]}'})
        with pytest.raises(ConfigError, match="max_instances"):
            await plane.start([ModelSettings(name="n", instances=4)])
    finally:
        await plane.close()


# Inference requests


def tensor(shape: list[int], data: list[Any], **parameters: Any) -> dict[str, Any]:
    return {"name": "x", "shape": shape, "datatype": "FP32", "data": data, "parameters": parameters}


def wanted(**parameters: Any) -> dict[str, Any]:
    return {**X, "outputs": [{"name": "y", "parameters": parameters}]}


def deep(levels: int) -> bytes:
    return b'{"inputs": ' + b"[" * levels + b"]" * levels + b"}"


REQUESTS: dict[str, tuple[Any, dict[str, str]]] = {
    "body, bytes": (b" " * 67_108_865, {}),
    "tensor, bytes by `shape`": (X, {}),
    "dimensions of `shape`": ({"inputs": [tensor([1] * 33, [1])]}, {}),
    "inputs": ({"inputs": [{**tensor([1, 3], [1, 2, 3]), "name": f"x{n}"} for n in range(1025)]}, {}),
    "`parameters`, of a request, an input or an output": ({**X, "parameters": {f"p{n}": n for n in range(1025)}}, {}),
    "nesting of JSON": (deep(64), {}),
    "name, bytes": ({"inputs": [{**tensor([1, 3], [1, 2, 3]), "name": "x" * 1025}]}, {}),
    "`classification` of an output": (wanted(classification=65_537), {}),
    "`binary_data_size`": (
        {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 10**18}}]},
        {"Inference-Header-Content-Length": "BODY"},
    ),
    "`Inference-Header-Content-Length`": (X, {"Inference-Header-Content-Length": "9" * 19}),
    "`timeout`, microseconds": ({**X, "parameters": {"timeout": 2**63}}, {}),
    "`priority`": ({**X, "parameters": {"priority": 2**63}}, {}),
}


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_a_request_beyond_a_limit_is_refused_by_name(http: str):
    rows = table("Requests")
    assert rows.keys() == REQUESTS.keys() | CONFIGS.keys()
    assert Limits() == Limits(
        body_bytes=int(rows["body, bytes"][1]),
        tensor_bytes=int(rows["tensor, bytes by `shape`"][1]),
        rank=int(rows["dimensions of `shape`"][1]),
        tensors=int(rows["inputs"][1]),
        json_depth=int(rows["nesting of JSON"][1]),
        name_bytes=int(rows["name, bytes"][1]),
        classes=int(rows["`classification` of an output"][1]),
    )
    # A body of 64 MiB cannot hold a tensor of 256 MiB; a server with room for two of the row's three values stands in.
    async with rest("row", http=http) as server, rest("row", http=http, limits=Limits(tensor_bytes=11)) as narrow:
        for name, (body, headers) in REQUESTS.items():
            data = body if isinstance(body, bytes) else orjson.dumps(body)
            sent = {field: value.replace("BODY", str(len(data))) for field, value in headers.items()}
            asked = narrow if name == "tensor, bytes by `shape`" else server
            answer = await asked.ask("POST", "/v2/models/row/infer", data, sent)
            status, _, said = rows[name][3].partition(" ")
            assert (answer.status, said.strip("`") in answer.json["error"]) == (int(status), True), (name, answer.body)
        assert (await server.ask("POST", "/v2/models/row/infer", X)).status == 200
        assert (await server.ask("POST", "/v2/models/row/infer", wanted(classification=65_536))).status == 200
        for last in (2**63 - 1, 10**18):
            patient = {**X, "parameters": {"timeout": last, "priority": last}}
            assert (await server.ask("POST", "/v2/models/row/infer", patient)).status == 200


@pytest.mark.parametrize("engine", ENGINES)
def test_grpc_holds_to_the_same_classes_and_to_deadlines_of_centuries(engine: str):
    with serving_grpc(engine, names=("sum",)) as server, grpc.insecure_channel(server.address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        request = pb.ModelInferRequest(model_name="sum")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 3]).contents.fp32_contents.extend([1, 2, 3])
        request.parameters["timeout"].int64_param = 2**63 - 1
        infer(request.SerializeToString(), timeout=3.0e8)  # ten years
        request.outputs.add(name="y").parameters["classification"].int64_param = 65_537
        with pytest.raises(grpc.RpcError) as caught:
            infer(request.SerializeToString(), timeout=20)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_classes" in caught.value.details()


@pytest.mark.parametrize("deadline_s", [1e12, 1e300, math.inf], ids=str)
async def test_a_deadline_beyond_every_timer_is_kept(deadline_s: float):
    """Timers of event loops end at 2^63 ns, or at the float's; a request may say more."""

    def nothing(pending: Any) -> None:
        raise AssertionError("it has not come")

    watched = Deadlines(asyncio.get_running_loop(), asyncio.get_running_loop().time, nothing)
    watched.add(typing.cast("Any", object()), deadline_s)
    await asyncio.sleep(0)
    assert len(watched) == 1
    watched.close()


# Files


class Wide(Model):
    """Says of itself what a file could: one row of a terabyte."""

    inputs = (TensorSpec("x", "FP32", (-1, 1 << 38)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def predict(self, inputs: Mapping[str, Any], call: Any) -> Mapping[str, Any]:
        raise AssertionError("no row of it can be made")


def load(model: Callable[[ModelSettings], Model], settings: ModelSettings) -> None:
    async def run() -> None:
        plane = Plane(Registry(model))
        try:
            await plane.start([settings])
        finally:
            await plane.close()

    asyncio.run(run())


def ensemble(folder: Path, old: str, new: str) -> None:
    assert old in ensemble_support.TEXT
    ensemble_support.write(folder, ensemble_support.TEXT.replace(old, new, 1))
    Ensemble("fraud", str(folder)).load()


def wide_trees(folder: Path, features: int) -> dict[str, Any]:
    """Load four columns' worth of trees from a file that claims many more; what the model says of itself."""
    rows = np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3}, xgboost.DMatrix(rows, rows[:, 0] > 0), 2)
    document = json.loads(booster.save_raw("json"))
    document["learner"]["learner_model_param"]["num_feature"] = str(features)
    (folder / "model.json").write_text(json.dumps(document))
    with InMemoryClient(ModelSettings(name="m", implementation="xgboost_server", model_dir=folder)) as client:
        return dict(client.metadata.parameters)


@pytest.mark.slow  # trains trees of many columns
def test_trees_of_more_columns_than_can_be_verified_are_not_compiled(tmp_path: Path):
    assert wide_trees(tmp_path, 4)["engine"] == "forest"
    told = wide_trees(tmp_path, (1 << 18) + 1)
    assert told["engine"] == "booster"
    assert "262145 features" in str(told)


def labelled(folder: Path) -> None:
    """Read labels from a file one byte beyond the limit."""
    with (folder / "labels.txt").open("wb") as file:
        file.truncate((16 << 20) + 1)
    read_labels(ModelSettings(name="m", model_dir=folder), "")


SHAPE = (TensorSpec("x", "FP32", (-1, 1 << 38)),)
FILES: dict[str, Callable[[Path], None]] = {
    "`model-settings.json`: `inputs[].shape`, one row": lambda _: load(Sum, ModelSettings(name="m", inputs=SHAPE)),
    "a model file's own inputs, one row, where the model is warmed up": lambda _: load(Wide, ModelSettings(name="m")),
    "an XGBoost file's `num_feature`": lambda at: wide_trees(at, 10**9),
    "`model-settings.json`: `version`, characters": lambda _: load(Sum, ModelSettings(name="m", version="9" * 256)),
    "a model's name, characters": lambda _: load(Sum, ModelSettings(name="m" * 256)),
    "settings, labels, lists and `config.pbtxt` beside a model, bytes, each a regular file": lambda at: labelled(at),
    "`ensemble.yaml`: `members[].threads`": lambda at: ensemble(
        at, "file: xgb.ubj", "file: xgb.ubj\n    threads: 1025"
    ),
    "`ensemble.yaml`: `inputs[].shape`, one row": lambda at: ensemble(
        at, "datatype: FP64, shape: [-1]", "datatype: FP64, shape: [-1, 33554433]"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_number_of_a_model_is_refused_by_name(tmp_path: Path, name: str):
    rows = table("Files")
    assert rows.keys() == FILES.keys()
    with pytest.raises(ConfigError, match=rows[name][2].strip("`")):
        FILES[name](tmp_path)


# A predictor's answers


@pytest.mark.parametrize(
    "value", ["1" + "0" * 400, "9" * 5000, "²", "-1", "1e300", "inf", "nan", "3601"], ids=lambda v: v[:8]
)
async def test_a_predictors_retry_after_is_no_number_that_breaks_anything(value: str):
    seconds = retry_seconds(value)
    assert seconds is None or 0 <= seconds <= 3600
    error = Overloaded("full", seconds or 1.0)
    assert re.fullmatch(rb"\d+", b"%d" % math.ceil(error.retry_after_s))
