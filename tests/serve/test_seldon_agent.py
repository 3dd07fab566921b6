"""A server of ours beside Seldon Core 2's agent: started by the ServerConfig's variables, filled and emptied by load requests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import grpc
from deferred import Deferred
from depth import only_deep, some_of
from representative import every
from seldon_agent import Agent, Server, model_server
from warm_start import obey_permissions

pytestmark = pytest.mark.slow  # servers of processes of their own

xgboost = Deferred("xgboost")
pb = Deferred("tritonclient.grpc.service_pb2")

ROOT = Path(__file__).resolve().parents[2]
FRAUD = ROOT / "inferenceservices" / "fraud"
SELDON = ROOT / "manifests" / "seldon"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seldon")


def folder(home: Path, name: str) -> Path:
    made = home / name
    made.mkdir()
    return made


def image(name: str) -> dict[str, str]:
    """What an image of ours sets (runtimes/Dockerfile), for a container of a Server."""
    app, _, transformer = name.partition("-")
    return {"SERINUS_CLASS": app, "SERINUS_TRANSFORMER": transformer}


def container(server: str) -> tuple[str, dict[str, str]]:
    """Image and variables of a Server's container; its metrics' port is not opened here."""
    document = yaml.safe_load((SELDON / f"server-{server}.yaml").read_text())
    (found,) = document["spec"]["podSpec"]["containers"]
    env = {item["name"]: item["value"] for item in found["env"] if item["name"] != "MLSERVER_METRICS_PORT"}
    return found["image"], {**image(found["image"]), **env}


def train(path: Path, seed: int, rows: np.ndarray) -> Any:
    booster = xgboost.train(
        {"objective": "binary:logistic", "seed": seed, "max_depth": 3},
        xgboost.DMatrix(rows, (rows[:, seed % 4] > 0).astype(int)),
        5,
    )
    path.mkdir(parents=True)
    booster.save_model(path / "model.json")
    return booster


ROWS = np.random.default_rng(4).normal(size=(50, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def artifacts(home: Path) -> dict[str, Any]:
    """Buckets: `plain` holds a model file alone, `versions` has versions 1 and 2 in folders of their own, `wrong` is no model."""
    root = folder(home, "artifacts")
    boosters = {"plain": train(root / "plain", 0, ROWS)}
    for version in (1, 2):
        boosters[f"versions/{version}"] = train(root / "versions" / str(version), version, ROWS)
        settings = {"implementation": "mlserver_xgboost.XGBoostModel", "parameters": {"uri": "./model.json"}}
        (root / "versions" / str(version) / "model-settings.json").write_text(json.dumps(settings))
    (root / "wrong").mkdir()
    (root / "wrong" / "model.json").write_text("{}")
    return {"root": root, "boosters": boosters}


@pytest.fixture(scope="module")
def xgb(home: Path) -> Iterator[Server]:
    with model_server(folder(home, "xgb"), image("xgboost_server")) as server:
        yield server


@pytest.fixture
def agent(xgb: Server) -> Iterator[Agent]:
    """An agent that finds the server empty, as the one before left it."""
    with Agent(xgb) as made:
        made.unload_all()
        yield made


def body(rows: np.ndarray = ROWS, **more: Any) -> dict[str, Any]:
    data = rows.reshape(-1).tolist()
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(rows.shape), "data": data}], **more}


def probabilities(answer: Any) -> np.ndarray:
    return np.float32(answer["outputs"][0]["data"])


IMAGES = (
    "xgboost_server",
    "lightgbm_server",
    "sklearn_server",
    "catboost_server",
    "classic_server",
    "mlflow_server",
    "onnx_server",
    "torch_server",
    "tensorflow_server",
    "ensemble_server",
    "fraud_features",
    "ensemble_server-fraud_features",
    "torch_server-recommender_features",
    "tensorflow_server-image_pixels",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", every(len(IMAGES), some_of(IMAGES, 5)))
def test_every_image_starts_alive_ready_and_without_a_model(name: str, home: Path):
    with model_server(folder(home, name), image(name)) as server, Agent(server) as agent:
        assert agent.index() == {}
        for path in ("live", "ready"):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.http}/v2/health/{path}", timeout=10) as answer:
                assert answer.status == 200
        assert list(server.folder.iterdir()) == []


def test_the_ports_and_the_folder_are_those_of_mlservers_variables(xgb: Server):
    assert f"REST on 127.0.0.1:{xgb.http}, gRPC on 127.0.0.1:{xgb.grpc}" in xgb.log.read_text()


def test_a_model_file_without_settings_is_served_by_its_requirement(agent: Agent, artifacts: dict[str, Any]):
    loaded = agent.download("income", artifacts["root"] / "plain", requirements=["xgboost"])
    assert loaded == "income_1"
    assert agent.load(loaded) == grpc.StatusCode.OK
    assert agent.index() == {"income_1": "READY"}
    expected = artifacts["boosters"]["plain"].inplace_predict(ROWS)
    status, answer = agent.infer("income", loaded, body(id="7"))
    assert (status, answer["model_name"], answer["model_version"], answer["id"]) == (200, "income_1", "1", "7")
    np.testing.assert_allclose(probabilities(answer), expected, atol=1e-6)
    request = pb.ModelInferRequest(
        model_name="income",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=ROWS.shape)],
        raw_input_contents=[ROWS.tobytes()],
    )
    got = np.frombuffer(agent.infer_grpc(loaded, request).raw_output_contents[0], np.float32)
    np.testing.assert_array_equal(got, probabilities(answer))
    with pytest.raises(LookupError, match="can't create"):
        agent.download("other", artifacts["root"] / "plain", requirements=["pytorch"])


def test_a_new_version_is_loaded_beside_the_old_one_which_then_goes(
    agent: Agent, xgb: Server, artifacts: dict[str, Any]
):
    first = agent.download("income", artifacts["root"] / "versions", artifact_version=1)
    assert agent.load(first) == grpc.StatusCode.OK
    second = agent.download("income", artifacts["root"] / "versions", version=2)
    assert agent.load(second) == grpc.StatusCode.OK
    assert agent.index() == {"income_1": "READY", "income_2": "READY"}
    for loaded, version in ((first, 1), (second, 2)):
        expected = artifacts["boosters"][f"versions/{version}"].inplace_predict(ROWS)
        # The proxy cuts the version out of the path.
        status, answer = agent.infer("income", loaded, body(), f"versions/{version}/infer")
        assert status == 200
        np.testing.assert_allclose(probabilities(answer), expected, atol=1e-6)
    assert agent.unload(first) == grpc.StatusCode.OK
    assert not (xgb.folder / first).exists()
    assert agent.index() == {"income_2": "READY"}
    assert agent.infer("income", second, body())[0] == 200
    assert agent.load(first) == grpc.StatusCode.NOT_FOUND
    assert agent.unload("nobody_1") == grpc.StatusCode.NOT_FOUND


def test_the_repositorys_calls_are_the_same_over_rest(agent: Agent, xgb: Server, artifacts: dict[str, Any]):
    loaded = agent.download("income", artifacts["root"] / "plain", requirements=["xgboost"])

    def post(path: str) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{xgb.http}/v2/repository/{path}"
        request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if content else None

    assert post(f"models/{loaded}/load")[0] == 200
    states = {entry["name"]: entry["state"] for entry in post("index")[1]}
    assert states["income_1"] == agent.index()["income_1"] == "READY"
    assert post(f"models/{loaded}/unload")[0] == 200
    assert agent.index().get("income_1") != "READY"


def test_parameters_of_the_model_reach_it(agent: Agent, artifacts: dict[str, Any]):
    loaded = agent.download(
        "named", artifacts["root"] / "plain", requirements=["xgboost"], parameters={"output_name": "score"}
    )
    assert agent.load(loaded) == grpc.StatusCode.OK
    status, answer = agent.infer("named", loaded, body())
    assert status == 200
    assert answer["outputs"][0]["name"] == "score"
    wrong = agent.download("wrong", artifacts["root"] / "plain", requirements=["xgboost"], parameters={"outptu": "a"})
    assert agent.load(wrong) == grpc.StatusCode.INVALID_ARGUMENT


def test_a_model_that_does_not_load_is_told_and_keeps_no_other_from_being_served(
    agent: Agent, artifacts: dict[str, Any]
):
    good = agent.download("good", artifacts["root"] / "plain", requirements=["xgboost"])
    wrong = agent.download("wrong", artifacts["root"] / "wrong", requirements=["xgboost"])
    assert agent.load(good) == grpc.StatusCode.OK
    assert agent.load(wrong) not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    states = agent.index()
    assert states["good_1"] == "READY"
    assert states.get("wrong_1", "UNAVAILABLE") == "UNAVAILABLE"
    assert agent.infer("good", good, body())[0] == 200
    assert agent.infer("wrong", wrong, body())[0] in (404, 503)


def test_an_agent_that_starts_again_unloads_what_it_finds(agent: Agent, xgb: Server, artifacts: dict[str, Any]):
    for name in ("a", "b"):
        assert agent.load(agent.download(name, artifacts["root"] / "plain", requirements=["xgboost"])) == (
            grpc.StatusCode.OK
        )
    with Agent(xgb) as after:
        after.unload_all()
        assert "READY" not in after.index().values()
        assert list(xgb.folder.iterdir()) == []
        again = after.download("a", artifacts["root"] / "plain", requirements=["xgboost"])
        assert after.load(again) == grpc.StatusCode.OK
        assert after.infer("a", again, body())[0] == 200


def test_a_bad_request_has_its_model_loaded_again_and_nobody_else_notices(agent: Agent, artifacts: dict[str, Any]):
    loaded = agent.download("income", artifacts["root"] / "plain", requirements=["xgboost"])
    assert agent.load(loaded) == grpc.StatusCode.OK
    statuses: list[int] = []
    done = threading.Event()

    def others() -> None:
        while not done.is_set():
            statuses.append(agent.infer("income", loaded, body(ROWS[:2]))[0])

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(5):
            status, answer = agent.infer("income", loaded, body(ROWS[:, :3]))
            assert (status, "error" in answer) == (400, True)
    finally:
        done.set()
        thread.join(60)
    assert statuses
    assert set(statuses) == {200}


@pytest.mark.slow
def test_the_folder_is_read_only_for_the_server_and_enough(agent: Agent, xgb: Server, artifacts: dict[str, Any]):
    loaded = agent.download("income", artifacts["root"] / "plain", requirements=["xgboost"])
    before = {str(p): p.stat().st_mtime_ns for p in xgb.folder.rglob("*")}
    probe = "import pathlib, sys; pathlib.Path(sys.argv[1], 'x').touch()"
    command = [sys.executable, "-c", probe, str(xgb.folder / loaded / "1")]
    tried = subprocess.run(command, preexec_fn=obey_permissions, capture_output=True, text=True, check=False)
    assert "PermissionError" in tried.stderr
    assert agent.load(loaded) == grpc.StatusCode.OK
    assert agent.infer("income", loaded, body())[0] == 200
    assert {str(p): p.stat().st_mtime_ns for p in xgb.folder.rglob("*")} == before


def artifact(source: Path, target: Path, runtime: str) -> Path:
    """Make a bucket's folder as manifests/seldon/README.md says: the model's files, and the settings that its runtime brings."""
    shutil.copytree(source, target)
    shutil.copy(ROOT / "runtimes" / runtime / "model-settings.json", target)
    return target


def message(document: dict[str, Any]) -> Any:
    """A V2 request of JSON as the protocol's message."""
    fields = {"BYTES": "bytes_contents", "FP64": "fp64_contents", "INT64": "int64_contents", "INT8": "int_contents"}
    request = pb.ModelInferRequest(id=document.get("id", ""))
    for entry in document["inputs"]:
        tensor = request.inputs.add(name=entry["name"], datatype=entry["datatype"], shape=entry["shape"])
        values = [v.encode() for v in entry["data"]] if entry["datatype"] == "BYTES" else entry["data"]
        getattr(tensor.contents, fields[entry["datatype"]]).extend(values)
    for key, value in document.get("parameters", {}).items():
        request.parameters[key].string_param = value
    return request


def wired(step: dict[str, Any], answers: dict[str, Any]) -> Any:
    """A Pipeline step's request: the tensors that it names, of the steps before it, as they came."""
    request = pb.ModelInferRequest()
    for text in step["inputs"]:
        source, kind, tensor = text.split(".")
        assert kind == "outputs"
        answer = answers[source]
        (index,) = [place for place, output in enumerate(answer.outputs) if output.name == tensor]
        request.inputs.add().MergeFromString(
            answer.outputs[index].SerializeToString()
        )  # the two messages have the same fields
        request.inputs[-1].name = step.get("tensorMap", {}).get(text, tensor)
        request.raw_input_contents.extend(answer.raw_output_contents[index : index + 1])
    return request


def values(answer: Any) -> dict[str, tuple[str, list[int], list[Any]]]:
    """Datatype, shape and values of each output of FP32 and BYTES; of contents that are not raw, as a request without raw ones gets."""
    assert not answer.raw_output_contents
    fields = {"FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents", "BOOL": "bool_contents"}
    return {
        output.name: (output.datatype, list(output.shape), list(getattr(output.contents, fields[output.datatype])))
        for output in answer.outputs
    }


@pytest.mark.slow
def test_the_steps_of_the_fraud_pipeline_answer_what_the_service_answers(home: Path):
    pipeline = yaml.safe_load((SELDON / "pipeline-fraud.yaml").read_text())["spec"]
    features, ensemble = pipeline["steps"]
    bucket = folder(home, "fraud")
    nothing = folder(bucket, "fraud-features")
    (nothing / "model-settings.json").write_text('{"name": "fraud-features"}')
    whole = artifact(FRAUD / "model", bucket / "fraud", "ensemble_server")
    request = json.loads((FRAUD / "request.json").read_text())
    expected = json.loads((FRAUD / "response.json").read_text())
    with (
        model_server(folder(home, "features"), container("fraud-features")[1]) as one,
        model_server(folder(home, "ensemble"), container("ensemble")[1]) as other,
        Agent(one) as at_features,
        Agent(other) as at_ensemble,
    ):
        loaded = at_features.download(features["name"], nothing)
        assert at_features.load(loaded) == grpc.StatusCode.OK, one.log.read_text()[-2000:]
        behind = at_ensemble.download(ensemble["name"], whole)
        assert at_ensemble.load(behind) == grpc.StatusCode.OK, other.log.read_text()[-2000:]
        answers = {features["name"]: at_features.infer_grpc(loaded, message(request))}
        answers[ensemble["name"]] = at_ensemble.infer_grpc(behind, wired(ensemble, answers))
        whose = ("transaction_id", "datetime", "customer_id", "terminal_id")
        columns = [entry for entry in request["inputs"] if entry["name"] in whose]
        columns.append({"name": "fraud", "datatype": "INT8", "shape": [3], "data": [1, 0, 0]})
        outcomes = {"inputs": columns, "parameters": {"operation": "record_labels"}}
        recorded = at_features.infer_grpc(loaded, message(outcomes))
        # What manifests/seldon/README.md says of REST.
        _, over_rest = at_features.infer(features["name"], loaded, request)
        data = next(output["data"] for output in over_rest["outputs"] if output["name"] == "features")
        assert None in data
    assert values(recorded)["recorded"][:2] == ("BOOL", [3])
    assert values(recorded)["recorded"][2][0] is True, "the fraud; outcomes that change nothing are not recorded"
    found = {}
    for text in pipeline["output"]["steps"]:
        source, _, *tensor = text.split(".")
        found |= {name: value for name, value in values(answers[source]).items() if not tensor or name == tensor[0]}
    assert list(found) == [output["name"] for output in expected["outputs"]]
    for want in expected["outputs"]:
        datatype, shape, data = found[want["name"]]
        assert (datatype, shape) == (want["datatype"], want["shape"])
        if datatype == "FP32":
            assert np.float32(data).tolist() == np.float32(want["data"]).tolist()
        else:
            assert data == [text.encode() for text in want["data"]]


@pytest.mark.slow
def test_both_steps_in_one_model_answer_the_same_without_a_pipeline(home: Path):
    request = json.loads((FRAUD / "request.json").read_text())
    expected = json.loads((FRAUD / "response.json").read_text())
    whole = artifact(FRAUD / "model", home / "whole", "ensemble_server")
    environment = {**image("ensemble_server-fraud_features"), "FEATURE_STORE_URL": ""}
    with model_server(folder(home, "fused"), environment) as server, Agent(server) as agent:
        loaded = agent.download("fraud", whole)
        assert agent.load(loaded) == grpc.StatusCode.OK, server.log.read_text()[-2000:]
        status, answer = agent.infer("fraud", loaded, request)
    assert (status, answer["model_name"]) == (200, "fraud_1")
    for got, want in zip(answer["outputs"], expected["outputs"], strict=True):
        assert (got["name"], got["shape"]) == (want["name"], want["shape"])
        same = np.float32 if want["datatype"] == "FP32" else np.array
        assert same(got["data"]).tolist() == same(want["data"]).tolist()


def recommenders() -> dict[str, str]:
    """The version's folder by the name of each recommender's Model."""
    documents = [yaml.safe_load(file.read_text()) for file in sorted(SELDON.glob("model-recommender-*.yaml"))]
    return {each["metadata"]["name"]: each["spec"]["storageUri"].rpartition("/")[2] for each in documents}


def test_the_recommenders_models_are_the_versions_that_are_trained():
    assert recommenders() == {"recommender-v1": "v1", "recommender-v2": "v2", "recommender-v2-shadow": "v2"}


@pytest.mark.slow
@pytest.mark.timeout(240)  # PyTorch is imported twice, and trains
@only_deep("several models of one server above, and tests/services/test_recommender.py")
def test_both_recommenders_share_a_server_and_each_has_the_catalogue_beside_it(home: Path):
    import recommender_support

    trained = folder(home, "trained")
    recommender_support.train(trained)
    (trained / "v1" / "titles.json").unlink()
    ask = {"inputs": [{"name": "user_id", "datatype": "INT64", "shape": [1], "data": [104]}]}
    with model_server(folder(home, "recommender"), container("recommender")[1]) as server, Agent(server) as agent:
        answers = {}
        for name, version in recommenders().items():
            loaded = agent.download(name, trained / version)
            assert agent.load(loaded) == grpc.StatusCode.OK, server.log.read_text()[-2000:]
            status, answers[name] = agent.infer(name, loaded, ask)
            assert status == 200, answers[name]
    titled = {name: "titles" not in answer.get("parameters", {}) for name, answer in answers.items()}
    assert titled == {"recommender-v1": False, "recommender-v2": True, "recommender-v2-shadow": True}
    items = {name: answer["outputs"][1]["data"] for name, answer in answers.items()}
    assert items["recommender-v2"] == items["recommender-v2-shadow"]
