"""The fraud service as it is shipped: its example's exact answer under every server and form, its YAML, and how good it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import yaml

import hosts_support
import serve_support
from depth import DEEP, draws, only_deep
from fraud_features.evaluation import average_precision
from fraud_features.sample import Sample, load_history, load_sample, raw_tensors
from fraud_features.schema import COLUMNS
from fraud_support import ROOT, SERVICE
from serinus.dataplane.plane import Plane
from serinus.errors import InvalidInput, SerinusError
from serinus.protocol.types import InferRequest, Tensor

if TYPE_CHECKING:
    from serinus.local.plan.deployment_plan import ComponentPlan

REQUEST = json.loads((SERVICE / "request.json").read_text())
RESPONSE = json.loads((SERVICE / "response.json").read_text())
MODEL = SERVICE / "model"
FORMS = ("split", "fused")


def same(answer: Any) -> None:
    """Hold an answer to the committed one: scores as FP32, the rest as it stands."""
    assert answer["model_name"] == "fraud"
    assert answer["id"] == RESPONSE["id"]
    assert [o["name"] for o in answer["outputs"]] == [o["name"] for o in RESPONSE["outputs"]]
    for got, want in zip(answer["outputs"], RESPONSE["outputs"], strict=True):
        assert (got["datatype"], got["shape"]) == (want["datatype"], want["shape"])
        if want["datatype"] == "FP32":
            assert np.array(got["data"], np.float32).tolist() == np.array(want["data"], np.float32).tolist()
        else:
            assert got["data"] == want["data"]


@pytest_asyncio.fixture
async def plane() -> AsyncIterator[Plane]:
    async with hosts_support.serving(
        "ensemble_server", name="fraud", transformer="fraud_features", model_dir=MODEL
    ) as opened:
        yield opened


def infer_request(part: Sample, *, with_labels: bool = False, **parameters: Any) -> InferRequest:
    made = [Tensor(n, t.datatype, t.data.shape, t.data) for n, t in raw_tensors(part, with_labels=with_labels).items()]
    return InferRequest("fraud", made, parameters=parameters)


@pytest.mark.slow
async def test_the_fused_form_keeps_its_quality_on_the_held_out_day(plane: Plane):
    """What README and metrics.json claim of all test days, on the one that is committed, through the data plane."""
    for part in load_history(SERVICE / "data").batches(20_000):
        await plane.infer(infer_request(part, with_labels=True))
    sample = load_sample(SERVICE / "data")
    answers = [await plane.infer(infer_request(part)) for part in sample.batches(100)]
    columns = {
        name: np.concatenate([a.output(name).data for a in answers])  # type: ignore[union-attr] # asserted by use
        for name in ("transaction_id", "score", "decision")
    }
    assert columns["transaction_id"].tolist() == sample.columns["transaction_id"].tolist()
    assert average_precision(sample.labels, columns["score"]) > 0.8
    declined = columns["decision"] == b"decline"
    assert sample.labels[declined].mean() > 0.9
    assert declined.mean() > 0.03


async def test_the_fused_form_tells_the_column_and_keeps_nothing(plane: Plane):
    bad = load_sample(SERVICE / "data").part(0, 5)
    request = infer_request(bad)
    amount = next(t for t in request.inputs if t.name == "amount")
    amount.data = np.array([1.0, 2.0, -3.0, 4.0, 5.0])
    with pytest.raises(InvalidInput, match=r"column 'amount', row 2: -3\.0 came"):
        await plane.infer(request)
    response = await plane.infer(infer_request(bad.part(0, 1), stats=True))
    assert response.parameters["store_ids"] == 1


async def test_the_fused_form_takes_ids_as_integers_and_times_as_text(plane: Plane):
    part = load_sample(SERVICE / "data").part(0, 2)
    request = infer_request(part)
    by_name = {t.name: t for t in request.inputs}
    by_name["transaction_id"].datatype = "INT64"
    by_name["transaction_id"].data = np.array([1, 2], np.int64)
    by_name["datetime"].datatype = "BYTES"
    by_name["datetime"].data = np.array([b"2025-04-18T00:00:01Z", b"2025-04-18T00:00:02Z"], object)
    response = await plane.infer(request)
    ids = response.output("transaction_id")
    assert ids is not None
    assert (ids.datatype, ids.data.tolist()) == ("INT64", [1, 2])


async def test_the_fused_form_records_outcomes(plane: Plane):
    part = load_sample(SERVICE / "data").part(0, 3)
    await plane.infer(infer_request(part))
    five = ("transaction_id", "datetime", "customer_id", "terminal_id")
    inputs = [t for t in infer_request(part).inputs if t.name in five]
    inputs.append(Tensor("fraud", "INT8", (3,), np.array([1, 0, 1], np.int8)))
    response = await plane.infer(InferRequest("fraud", inputs, parameters={"operation": "record_labels"}))
    recorded = response.output("recorded")
    assert recorded is not None
    assert recorded.data.tolist() == [True, False, True]


@pytest.mark.slow
async def test_as_many_rows_as_are_documented_are_answered_and_one_more_is_refused(plane: Plane):
    history = load_history(SERVICE / "data")
    part = Sample(
        {
            name: np.array([b"%d" % row for row in range(100_001)], object)
            if name == "transaction_id"
            else np.resize(values, 100_001)
            for name, values in history.columns.items()
        },
        np.resize(history.labels, 100_001),
    )
    with pytest.raises(SerinusError, match="100001 rows came, expected at most 100000; split the request"):
        await plane.infer(infer_request(part))
    rows = draws(
        100_000, 20_000
    )  # all 100,000 pass the schema in every run: tests/fraud_features/test_column_reader.py
    response = await plane.infer(infer_request(part.part(0, rows)))
    assert response.outputs[0].shape == (rows,)


@pytest.mark.slow
def test_serinus_answers_the_example_fused_and_split(tmp_path: Path):
    (tmp_path / "transformer").mkdir()
    name = ("--model_name", "fraud")
    model = (*name, "--class", "ensemble_server", "--model_dir", str(MODEL))
    with serve_support.serving(tmp_path, *model, "--transformer", "fraud_features") as fused:
        status, answer = fused.ask("POST", "/v2/models/fraud/infer", REQUEST)
        assert status == 200, answer
        same(answer)
        rows = [dict(zip((t["name"] for t in REQUEST["inputs"]), row, strict=True)) for row in zip(*(t["data"] for t in REQUEST["inputs"]), strict=True)]  # fmt: skip # noqa: E501
        status, answer = fused.ask("POST", "/v1/models/fraud:predict", {"instances": rows})
        assert status == 200, answer
        assert [p["decision"] for p in answer["predictions"]] == RESPONSE["outputs"][2]["data"]
        status, answer = fused.ask("POST", "/v2/models/fraud/infer", {"inputs": REQUEST["inputs"][1:]})
        assert status == 400
        assert "column 'transaction_id': missing" in answer["error"]
    with serve_support.serving(tmp_path, *model) as predictor:
        # REST between two servers is in every run in tests/onnx_server/test_row_counts.py
        protocols = [("grpc-v2", predictor.grpc_port), *([("v2", predictor.http_port)] if DEEP else [])]
        for protocol, port in protocols:
            flags = (
                "--class",
                "fraud_features",
                "--predictor_host",
                f"127.0.0.1:{port}",
                "--predictor_protocol",
                protocol,
            )
            with serve_support.serving(tmp_path / "transformer", *name, *flags) as transformer:
                status, answer = transformer.ask("POST", "/v2/models/fraud/infer", REQUEST)
                assert status == 200, answer
                same(answer)


@pytest.fixture(scope="module")
def stock_predictor() -> Iterator[tuple[int, int]]:
    """The ensemble under KServe's own server; yields its ports of REST and gRPC."""
    ports = hosts_support.free_port(), hosts_support.free_port()
    words = ["--model_name", "fraud", "--http_port", str(ports[0]), "--grpc_port", str(ports[1])]
    command = ["-m", "ensemble_server", *words, "--model_dir", str(MODEL)]
    with hosts_support.process(command, f"http://127.0.0.1:{ports[0]}/v2/models/fraud/ready"):
        yield ports


@pytest.fixture
def stock(request: pytest.FixtureRequest, stock_predictor: tuple[int, int]) -> Iterator[str]:
    """Both classes under KServe's own server, gRPC or REST between them; yields the transformer's URL."""
    ports = hosts_support.free_port(), hosts_support.free_port()
    asked = stock_predictor[1] if request.param == "grpc-v2" else stock_predictor[0]
    words = ["--model_name", "fraud", "--http_port", str(ports[0]), "--grpc_port", str(ports[1])]
    transformer = ["-m", "fraud_features", *words]
    transformer += ["--predictor_host", f"127.0.0.1:{asked}", "--predictor_protocol", request.param]
    url = f"http://127.0.0.1:{ports[0]}"
    with hosts_support.process(transformer, f"{url}/v2/health/live"):
        yield url


@pytest.mark.slow
@pytest.mark.parametrize(
    "stock",
    ["grpc-v2", pytest.param("v2", marks=only_deep("the same over gRPC, which the manifests name"))],
    indirect=True,
)
def test_stock_kserve_answers_the_example(stock: str):
    answer = httpx.post(f"{stock}/v2/models/fraud/infer", json=REQUEST, timeout=30)
    assert answer.status_code == 200, answer.text
    same(answer.json())
    bad = {**REQUEST, "inputs": [{**t, "data": [-1.0] * 3} if t["name"] == "amount" else t for t in REQUEST["inputs"]]}
    refused = httpx.post(f"{stock}/v2/models/fraud/infer", json=bad, timeout=30)
    assert refused.status_code == 400
    assert "3 problems: column 'amount', row 0: -1.0 came" in refused.json()["error"]


def components(form: str) -> dict[str, ComponentPlan]:
    """What runs: the service and its runtime merged as the controller merges them."""
    from serinus.local.plan.deployment_plan import PlanOptions
    from serinus.local.plan.plan_loader import load

    loaded = load(SERVICE / form, (), PlanOptions())
    assert loaded.problems == ()
    (plan,) = loaded.services
    return {part.kind: part for part in (plan.stable.predictor, plan.stable.transformer) if part is not None}


def blocks(form: str) -> dict[str, Any]:
    document = yaml.safe_load((SERVICE / form / "inferenceservice.yaml").read_text())
    return {part: document["spec"][part] for part in ("transformer", "predictor") if part in document["spec"]}


@pytest.mark.parametrize("form", FORMS)
def test_images_are_folders(form: str):
    for part in components(form).values():
        (container,) = part.containers
        named = dict(container.command.env)
        assert named.keys() <= {"SERINUS_CLASS", "SERINUS_TRANSFORMER"}
        assert "SERINUS_CLASS" in named
        for name in named.values():
            assert (ROOT / "runtimes" / name / "__init__.py").exists() or (
                ROOT / "transformers" / name / "__init__.py"
            ).exists()


def test_the_split_predictors_first_port_is_grpc_because_port_80_leads_there():
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run(
        [str(kubectl), "kustomize", str(SERVICE / "split")], capture_output=True, text=True, check=True
    )
    (runtime,) = (item for item in yaml.safe_load_all(done.stdout) if item["kind"] == "ServingRuntime")
    assert runtime["metadata"]["name"] == blocks("split")["predictor"]["model"]["runtime"]
    assert [port["name"] for port in runtime["spec"]["containers"][0]["ports"]] == ["h2c", "http1"]
    (transformer,) = components("split")["transformer"].containers
    assert "--predictor_protocol=grpc-v2" in transformer.words


@pytest.mark.parametrize("form", FORMS)
def test_the_part_that_holds_the_store_has_one_replica(form: str):
    part = "transformer" if form == "split" else "predictor"
    (container,) = components(form)[part].containers
    assert container.env["FEATURE_STORE_URL"] == ""
    assert blocks(form)[part]["maxReplicas"] == 1


@pytest.mark.parametrize("form", FORMS)
def test_the_local_model_is_where_the_annotation_says(form: str):
    document = yaml.safe_load((SERVICE / form / "inferenceservice.yaml").read_text())
    where = document["metadata"]["annotations"]["serinus.dev/local-storage-uri"]
    assert (SERVICE / form / where / "ensemble.yaml").exists()


def test_the_readme_tells_every_column_and_the_measured_figures():
    readme = (SERVICE / "README.md").read_text()
    for column in COLUMNS:
        assert f"`{column.name}`" in readme
    measured = json.loads((MODEL / "metrics.json").read_text())
    figures = measured["test"]
    told = re.findall(r"\d+\.\d+", readme)
    for name in ("auc_pr", "recall_at_1_percent_review", "recall_at_5_percent_review"):
        assert f"{figures[name]:.3f}" in told, name
    for name in ("declined_precision", "reviewed_precision", "frauds_declined_or_reviewed"):
        assert f"{100 * figures[name]:.1f}" in told, name
    assert sum(measured["model_bytes"].values()) < 2_000_000
    assert sum(file.stat().st_size for file in (SERVICE / "data").iterdir()) < 1_000_000
