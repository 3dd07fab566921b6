"""`FraudFeatures` as KServe calls it: V1 and V2, REST and gRPC forms, and back with ids; a refused request leaves nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import fraud_support as support
from deferred import Deferred
from fraud_features.features import FEATURE_NAMES
from fraud_features.store import MemoryStore
from fraud_support import NOW_S

kserve_context = Deferred("kserve.context")
kserve_errors = Deferred("kserve.errors")
InferInput = Deferred("kserve", "InferInput")
InferOutput = Deferred("kserve", "InferOutput")
InferRequest = Deferred("kserve", "InferRequest")
InferResponse = Deferred("kserve", "InferResponse")
PredictorConfig = Deferred("kserve", "PredictorConfig")
RequestedOutput = Deferred("kserve.protocol.infer_type", "RequestedOutput")
Behind = Deferred("fraud_transformer", "Behind")
FraudFeatures = Deferred("fraud_features.transformer", "FraudFeatures")
open_store = Deferred("fraud_features.transformer", "open_store")


@pytest.fixture
def model() -> Behind:
    kserve_context.set_predictor_config(PredictorConfig("predictor:80", "grpc-v2", False, 10, 0, False))
    return Behind()


def request(columns: dict[str, list[Any]], **more: Any) -> InferRequest:
    inputs = [InferInput(n, list(t.shape or []), t.datatype, t.data) for n, t in support.tensors(columns).items()]
    return InferRequest("fraud", inputs, **more)


def grpc_request(columns: dict[str, list[Any]], **more: Any) -> InferRequest:
    """What KServe's gRPC servicer hands over: made from the message that a client sends."""
    made = request(columns, **more)
    for tensor in made.inputs:
        kind = object if tensor.datatype == "BYTES" else np.int64 if tensor.datatype == "INT64" else np.float64
        values = [v.encode() for v in tensor.data] if tensor.datatype == "BYTES" else tensor.data
        tensor.set_data_from_numpy(np.array(values, kind), binary_data=True)
    return InferRequest.from_grpc(made.to_grpc())


async def answer(model: Behind, payload: Any) -> Any:
    response, _ = await model(payload, headers={})
    return response


async def test_columns_become_the_feature_tensor_and_ids_come_back(model: Behind):
    columns = support.values(5)
    response = await answer(model, request(columns, request_id="r1"))
    asked = {tensor.name: tensor.as_numpy() for tensor in model.asked[0].inputs}
    assert asked["features"].shape == (5, len(FEATURE_NAMES))
    assert asked["features"].dtype == np.float32
    assert asked["features"][:, 0].tolist() == np.array(columns["amount"], np.float32).tolist()
    assert asked["amount"].tolist() == columns["amount"]
    assert asked["terminal_id"].tolist() == [v.encode() for v in columns["terminal_id"]]
    assert [output.name for output in response.outputs] == ["transaction_id", "score", "decision"]
    assert response.outputs[0].as_numpy().tolist() == [v.encode() for v in columns["transaction_id"]]
    assert response.id == "r1"


async def test_grpc_rest_and_v1_give_the_same_features(model: Behind):
    columns = support.values(9)
    models = [Behind() for _ in range(3)]
    await answer(models[0], request(columns))
    await answer(models[1], grpc_request(columns))
    await answer(models[2], {"instances": support.instances(columns)})
    first, *others = (m.asked[0].inputs[0].as_numpy().view(np.uint32) for m in models)
    for other in others:
        assert np.array_equal(first, other)


async def test_what_goes_to_the_predictor_survives_grpc_and_rest(model: Behind):
    await answer(model, request(support.values(3)))
    for way in ("grpc", "rest"):
        sent = await model.preprocess(request(support.values(3)))
        if way == "grpc":
            back = InferRequest.from_grpc(sent.to_grpc())
        else:
            body, length = sent.to_rest()
            assert length is None
            back = InferRequest(
                "fraud", [InferInput(i["name"], i["shape"], i["datatype"], i["data"]) for i in body["inputs"]]
            )
        want = model.asked[0].inputs[0].as_numpy()
        assert np.array_equal(back.inputs[0].as_numpy(), want, equal_nan=True)


async def test_v1_answers_one_object_per_instance(model: Behind):
    columns = support.values(2)
    got = await answer(model, {"instances": support.instances(columns)})
    assert [p["transaction_id"] for p in got["predictions"]] == columns["transaction_id"]
    assert got["predictions"][0] == {
        "transaction_id": columns["transaction_id"][0],
        "score": pytest.approx(columns["amount"][0]),
        "decision": "approve",
    }


async def test_integer_ids_go_back_as_integers(model: Behind):
    made = request(support.values(2))
    made.inputs[0] = InferInput("transaction_id", [2], "INT64", [7, 8])
    ids = (await answer(model, made)).outputs[0]
    assert (ids.datatype, ids.as_numpy().tolist()) == ("INT64", [7, 8])


async def test_only_wanted_outputs_come_back(model: Behind):
    made = request(support.values(2), request_outputs=[RequestedOutput("transaction_id"), RequestedOutput("score")])
    response = await answer(model, made)
    assert [output.name for output in response.outputs] == ["transaction_id", "score"]
    assert [output.name for output in model.asked[0].request_outputs] == ["score"]
    await answer(model, request(support.values(2), request_outputs=[RequestedOutput("transaction_id")]))
    assert model.asked[1].request_outputs is None


async def test_parameters_are_passed_on_but_for_our_own(model: Behind):
    await answer(model, request(support.values(1), parameters={"explain": True, "stats": True, "operation": "score"}))
    assert model.asked[0].parameters == {"explain": True}


async def test_concurrent_requests_keep_their_own_ids(model: Behind):
    many = [support.values(1 + seed % 4, seed) for seed in range(40)]
    responses = await asyncio.gather(*(answer(model, request(columns)) for columns in many))
    for columns, response in zip(many, responses, strict=True):
        assert response.outputs[0].as_numpy().tolist() == [v.encode() for v in columns["transaction_id"]]
        assert response.outputs[1].as_numpy().tolist() == np.array(columns["amount"], np.float32).tolist()


@pytest.mark.parametrize("form", ["rest", "grpc", "v1"])
async def test_a_refused_request_leaves_nothing_in_the_store(model: Behind, form: str):
    columns = support.values(50)
    columns["amount"][49] = -1.0
    make = {"rest": request, "grpc": grpc_request, "v1": lambda c: {"instances": support.instances(c)}}[form]
    with pytest.raises(kserve_errors.InvalidInput, match=r"'amount', row 49: -1\.0 came"):
        await answer(model, make(columns))
    stats = await model.store.stats()
    assert (stats.customers, stats.terminals, stats.ids, stats.labels) == (0, 0, 0, 0)
    assert not model.asked
    columns["amount"][49] = 1.0
    await answer(model, make(columns))
    assert (await model.store.stats()).ids == 50


async def test_a_bad_request_does_not_touch_its_neighbours(model: Behind):
    good, bad = support.values(3, 1), support.values(3, 2)
    bad["type"][1] = "?"
    results = await asyncio.gather(answer(model, request(good)), answer(model, request(bad)), return_exceptions=True)
    assert isinstance(results[0], InferResponse)
    assert isinstance(results[1], kserve_errors.InvalidInput)
    assert (await model.store.stats()).ids == 3


async def test_a_retry_gets_the_features_of_the_first_time(model: Behind):
    columns = support.values(4)
    await answer(model, request(columns))
    await answer(model, request(support.values(4, 9)))
    await answer(model, request(columns))
    first, _, again = (asked.inputs[0].as_numpy() for asked in model.asked)
    assert np.array_equal(first, again, equal_nan=True)


async def test_outcomes_are_recorded_without_asking_the_predictor(model: Behind):
    columns = support.values(3)
    await answer(model, request(columns))
    five = {n: columns[n] for n in ("transaction_id", "datetime", "customer_id", "terminal_id")}
    inputs = [*request(five).inputs, InferInput("fraud", [3], "INT8", [1, 0, 1])]
    response = await answer(model, InferRequest("fraud", inputs, parameters={"operation": "record_labels"}))
    assert response.outputs[1].as_numpy().tolist() == [True, False, True]
    assert response.parameters["store_labels"] == 2
    v1 = {"instances": support.instances(five | {"fraud": [0, 0, 0]}), "operation": "record_labels"}
    got = await answer(model, v1)
    assert [p["recorded"] for p in got["predictions"]] == [True, False, True]
    assert got["parameters"]["store_labels"] == 0
    assert len(model.asked) == 1


async def test_the_column_fraud_records_outcomes_with_the_transactions(model: Behind):
    made = request(support.values(3))
    made.inputs.append(InferInput("fraud", [3], "BOOL", [True, False, False]))
    made.parameters = {"stats": True}
    response = await answer(model, made)
    assert response.parameters["store_labels"] == 1
    assert response.parameters["store_ids"] == 3


async def test_an_unknown_operation_is_refused(model: Behind):
    with pytest.raises(kserve_errors.InvalidInput, match="'operation': 'forget' came, expected score or record_labels"):
        await answer(model, request(support.values(1), parameters={"operation": "forget"}))


async def test_a_column_that_came_twice_is_refused(model: Behind):
    made = request(support.values(1))
    made.inputs.append(made.inputs[0])
    with pytest.raises(kserve_errors.InvalidInput, match="'transaction_id': came twice"):
        await answer(model, made)


async def test_a_v1_body_without_instances_is_refused(model: Behind):
    with pytest.raises(kserve_errors.InvalidInput, match="'instances': missing"):
        await answer(model, {"inputs": []})


async def test_a_predictor_that_loses_rows_is_found_out(model: Behind):
    model.rows_off = -1
    with pytest.raises(kserve_errors.InferenceError, match=r"'score': shape \[2\] came, expected 3 rows"):
        await answer(model, request(support.values(3)))


async def test_a_store_that_does_not_answer_is_not_ready():
    model = FraudFeatures("fraud", feature_store_url="redis://127.0.0.1:1/0", clock=lambda: NOW_S)
    model.load()
    with pytest.raises(kserve_errors.ModelNotReady, match=r"127\.0\.0\.1:1/0 does not answer"):
        await model.preprocess(request(support.values(1)))
    await model.store.close()


async def test_a_large_request_leaves_the_loop_free(model: Behind):
    columns = support.values(5000)
    task = asyncio.ensure_future(answer(model, request(columns)))
    turns = 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 10
    assert len((await task).outputs[0].as_numpy()) == 5000


def test_a_store_url_names_the_store(monkeypatch: pytest.MonkeyPatch):
    assert isinstance(open_store(""), MemoryStore)
    with pytest.raises(ValueError, match="'mysql://x' came, expected redis://"):
        open_store("mysql://x")
    monkeypatch.setenv("FEATURE_STORE_URL", "nonsense://")
    with pytest.raises(ValueError, match="FEATURE_STORE_URL"):
        FraudFeatures("fraud").load()


async def test_a_stopped_model_is_not_ready(model: Behind):
    model.stop()
    assert not await model.healthy()
