"""TensorFlow Serving's first examples: graphs of TensorFlow 1 and 2, rows of single numbers, `:classify`, `:regress`, version labels."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from deferred import Deferred
from rest_support import rest_in_thread
from serinus import Call, InferRequest, ModelSettings, Tensor
from serinus.errors import ConfigError, InvalidInput
from serinus.loading import settings_from_directory
from serve_support import ask_server
from vision_support import plane_of

graphs = Deferred("tensorflow_graphs")
tf = Deferred("tensorflow")

pytestmark = [
    pytest.mark.slow,  # importing TensorFlow alone takes ~8 s
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # TensorFlow's own
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first")
    graphs.write_half_plus(root / "v1" / "00000123")
    graphs.write_half_plus(root / "text" / "1", as_text=True)
    graphs.write_half_plus(root / "unknown" / "1", rank=None)
    graphs.write_half_plus(root / "called_scalar" / "1", told=())
    graphs.write_half_plus(root / "called_unknown" / "1", told=None)
    graphs.write_half_plus_three(root / "three" / "1")
    graphs.write_half_plus_two_tf2(root / "tf2" / "1")
    graphs.write_counter(root / "counter" / "1")
    return root


def settings(path: Path, name: str = "m", **extra: Any) -> list[ModelSettings]:
    found = settings_from_directory(path, extra=extra)
    return [dataclasses.replace(one, name=name, extra={**one.extra, **extra}) for one in found]


async def v1(plane: Any, body: Any, verb: str = "predict", version: str = "") -> Any:
    from serinus.dataplane.awaiting import wait_for_answer

    data = body if isinstance(body, bytes) else orjson.dumps(body)
    task = "" if verb == "predict" else verb
    answer = await wait_for_answer(lambda done: plane.v1_nowait("m", data, done, version=version, task=task))
    return orjson.loads(answer.document)


def test_the_graphs_that_only_the_session_loader_reads_are_such(repository: Path):
    for name in ("three", "counter"):
        with pytest.raises((ValueError, tf.errors.OpError)):
            tf.saved_model.load(str(repository / name / "1"))


ALIKE = ("v1", "text", "unknown", "called_scalar", "called_unknown", "tf2")
ROWS = {
    "numbers": ({"instances": [1.0, 2.0, 5.0]}, {"predictions": [2.5, 3.0, 4.5]}),
    "one number": ({"instances": [1.0]}, {"predictions": [2.5]}),
    "whole numbers": ({"instances": [2, 3, 4]}, {"predictions": [3.0, 3.5, 4.0]}),
    "named": ({"instances": [{"x": 1.0}, {"x": 2.0}]}, {"predictions": [2.5, 3.0]}),
    "rows of one": ({"instances": [[1.0], [2.0], [5.0]]}, {"predictions": [[2.5], [3.0], [4.5]]}),
    "a column": ({"inputs": [1.0, 2.0, 5.0]}, {"outputs": [2.5, 3.0, 4.5]}),
    "a named column": ({"inputs": {"x": [1.0, 2.0, 5.0]}}, {"outputs": [2.5, 3.0, 4.5]}),
    "a column of rows": ({"inputs": [[1.0], [2.0]]}, {"outputs": [[2.5], [3.0]]}),
    "one value": ({"inputs": 1.0}, {"outputs": 2.5}),
    "a signature by name": (
        {"signature_name": "serving_default", "instances": [1.0, 2.0]},
        {"predictions": [2.5, 3.0]},
    ),
}


@pytest.mark.parametrize("name", ALIKE)
async def test_rows_of_single_numbers_are_answered_as_they_are_nested(repository: Path, name: str):
    """Whatever the signature says of the row: [1], [-1, 1], nothing, or what is not so."""
    async with plane_of(*settings(repository / name)) as plane:
        for case, (body, wanted) in ROWS.items():
            assert await v1(plane, body) == wanted, case


async def test_half_plus_three_is_served(repository: Path):
    async with plane_of(*settings(repository / "three")) as plane:
        assert await v1(plane, {"instances": [1.0, 2.0, 5.0]}) == {"predictions": [3.5, 4.0, 5.5]}
        body = {"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]}
        assert await v1(plane, body, "regress") == {"results": [3.5, 4.0]}


async def test_a_variable_that_a_signature_changes_keeps_its_value(repository: Path):
    async with plane_of(*settings(repository / "counter")) as plane:
        before = (await v1(plane, {"inputs": 0.0}))["outputs"]
        assert (await v1(plane, {"inputs": 2.0}))["outputs"] == before + 2
        assert (await v1(plane, {"inputs": {"delta": 1.0}}))["outputs"] == before + 3


@pytest.mark.parametrize("name", ALIKE)
async def test_rows_of_more_than_the_model_takes_are_refused(repository: Path, name: str):
    async with plane_of(*settings(repository / name)) as plane:
        shape = [] if plane.model_metadata("m").inputs[0].any_rank else [[1.0, 2.0]]
        for row in shape:
            with pytest.raises(InvalidInput, match="input 'x': shape"):
                await v1(plane, {"instances": [row, row]})
        with pytest.raises(InvalidInput, match="input 'z'"):
            await v1(plane, {"instances": [{"z": 1.0}]})
        with pytest.raises(InvalidInput):
            await v1(plane, {"instances": ["a"]})


async def test_v2_requests_are_held_to_the_shapes_that_the_metadata_says(repository: Path):
    async with plane_of(*settings(repository / "v1")) as plane:
        assert plane.model_metadata("m").inputs[0].shape == (-1, 1)
        three = Tensor.of("x", np.array([1, 2, 5], np.float32))
        with pytest.raises(InvalidInput, match=r"the model takes 2: \[-1, 1\]"):
            await plane.infer(InferRequest("m", [three]))
    async with plane_of(*settings(repository / "unknown")) as plane:
        assert plane.model_metadata("m").inputs[0].shape == (-1,)
        for shape in ((3,), (3, 1), ()):
            x = Tensor.of("x", np.full(shape, 2, np.float32))
            (y,) = (await plane.infer(InferRequest("m", [x]))).outputs
            assert (y.shape, y.data.ravel()[0]) == (shape, 3.0)


EXAMPLES = [{"x": 2.0}, {"x": [4.0], "x2": 6.0}]
TASKS: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "regress": ("regress", {"signature_name": "regress_x_to_y", "examples": EXAMPLES}, [3.0, 4.0]),
    "regress otherwise": ("regress", {"signature_name": "regress_x_to_y2", "examples": EXAMPLES}, [4.0, 5.0]),
    "regress with a context": (
        "regress",
        {"signature_name": "regress_x_to_y", "context": {"x": 2.0}, "examples": [{"x2": 1.0}, {}]},
        [3.0, 3.0],
    ),
    "regress NaN": ("regress", {"signature_name": "regress_x_to_y", "examples": [{"x": "NaN"}]}, [None]),
    "classify by scores": (
        "classify",
        {"signature_name": "classify_x_to_y", "examples": EXAMPLES},
        [[["", 3.0]], [["", 4.0]]],
    ),
    "classify": (
        "classify",
        {"signature_name": "classify_two", "examples": EXAMPLES},
        [[["low", 3.0], ["high", 6.0]], [["low", 6.0], ["high", 12.0]]],
    ),
    "classify by labels": (
        "classify",
        {"signature_name": "classify_labels", "examples": EXAMPLES[:1]},
        [[["low", 0.0], ["high", 0.0]]],
    ),
}


@pytest.mark.parametrize("case", TASKS)
async def test_examples_are_classified_and_regressed(repository: Path, case: str):
    verb, body, wanted = TASKS[case]
    data = orjson.dumps(body).replace(b'"NaN"', b"NaN")
    async with plane_of(*settings(repository / "v1")) as plane:
        assert await v1(plane, data, verb) == {"results": wanted}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a signature that predicts": (
        "regress",
        {"examples": EXAMPLES},
        "the default signature does not regress.*name one that does.*'regress_x_to_y'",
    ),
    "a signature of numbers": (
        "regress",
        {"signature_name": "regress_x2_to_y3", "examples": EXAMPLES},
        "signature 'regress_x2_to_y3' does not regress",
    ),
    "a regression for a classification": (
        "classify",
        {"signature_name": "regress_x_to_y", "examples": EXAMPLES},
        "does not classify.*'classify_x_to_y'",
    ),
    "an unknown signature": (
        "classify",
        {"signature_name": "nope", "examples": EXAMPLES},
        "signatures are.*'classify_two'",
    ),
    "a signature that is no text": ("classify", {"signature_name": 1, "examples": EXAMPLES}, "a string was expected"),
    "no examples": ("regress", {"signature_name": "regress_x_to_y"}, "'examples' is missing"),
    "empty examples": ("regress", {"examples": []}, "'examples' is empty"),
    "examples that are no array": ("regress", {"examples": {"x": 1.0}}, "'examples' is an object"),
    "instances": ("regress", {"instances": [1.0]}, "'examples' is missing"),
    "an example that is a number": ("regress", {"examples": [1.0]}, r"examples\[0\] is 1.0, an object"),
    "a context that is an array": ("regress", {"context": [1], "examples": EXAMPLES}, "'context' is an array"),
    "a feature in both": (
        "regress",
        {"context": {"x": 1.0}, "examples": EXAMPLES},
        r"examples\[0\] has the feature 'x', which 'context' has",
    ),
    "null": ("regress", {"examples": [{"x": None}]}, "feature 'x' holds null"),
    "an object": ("regress", {"examples": [{"x": {"a": 1}}]}, "feature 'x' holds an object"),
    "a nested list": ("regress", {"examples": [{"x": [[1.0]]}]}, "feature 'x' holds an array"),
    "two kinds": ("regress", {"examples": [{"x": [1.0, "a"]}]}, "mixes bytes and floats"),
    "no base64": ("regress", {"examples": [{"x": {"b64": "*"}}]}, "'b64' is not base64"),
    "beyond int64": ("regress", {"examples": [{"x": 2**63}]}, "does not fit int64"),
    "a whole number for a float": (
        "regress",
        {"signature_name": "regress_x_to_y", "examples": [{"x": 1}]},
        "the graph refuses the request",
    ),
    "a feature missing": (
        "regress",
        {"signature_name": "regress_x_to_y", "examples": [{"x2": 1.0}]},
        "the graph refuses the request",
    ),
    "scores of no row": (
        "classify",
        {"signature_name": "wrong_scores", "examples": EXAMPLES},
        r"'scores' has shape \[2\]",
    ),
    "two values a row": (
        "regress",
        {"signature_name": "wrong_values", "examples": EXAMPLES},
        r"'outputs' is FP32 \[2, 2\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_no_example_is_the_clients_fault(repository: Path, case: str):
    verb, body, reason = REFUSED[case]
    async with plane_of(*settings(repository / "v1")) as plane:
        with pytest.raises(InvalidInput, match=reason):
            await v1(plane, body, verb)


FEATURES = {
    "a": 1.5,
    "b": [1, -2, 2**62, -(2**63), True, False],
    "c": ["text", "é", {"b64": base64.b64encode(b"\x00\xff").decode()}],
    "d": [],
    "e": [0.1, 1e40, -0.0],
    "f" * 200: "x" * 300,
}


def test_examples_are_written_as_tensorflow_reads_them():
    from serinus.protocol.peers import example_codec
    from serinus.protocol.types import Limits

    body = {"context": {"shared": 1}, "examples": [FEATURES, {}]}
    first, second = example_codec.decode(orjson.dumps(body), Limits()).rows
    found = tf.train.Example.FromString(first).features.feature
    assert sorted(found) == sorted([*FEATURES, "shared"])
    assert list(found["a"].float_list.value) == [1.5]
    assert list(found["b"].int64_list.value) == [1, -2, 2**62, -(2**63), 1, 0]
    assert list(found["c"].bytes_list.value) == [b"text", "é".encode(), b"\x00\xff"]
    assert found["d"].WhichOneof("kind") is None
    assert list(found["e"].float_list.value) == [np.float32(0.1), np.inf, 0.0]
    assert found["f" * 200].bytes_list.value[0] == b"x" * 300
    assert list(tf.train.Example.FromString(second).features.feature["shared"].int64_list.value) == [1]


LABELS: dict[str, tuple[Any, str]] = {
    "a version that is not served": (
        {"stable": 9},
        "the label 'stable'.*version 9, which is not served; served is 123",
    ),
    "a text for a version": ({"stable": "123"}, "accepted is"),
    "no object": (["stable"], "accepted is"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_stand_for_nothing_are_refused_at_start(repository: Path, case: str):
    labels, reason = LABELS[case]
    with pytest.raises(ConfigError, match=reason):
        settings(repository / "v1", version_labels=labels)


def test_a_version_that_two_folders_claim_is_refused(tmp_path: Path):
    for name in ("1", "001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ConfigError, match="version 1 is there twice"):
        settings_from_directory(tmp_path)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[int, Any]]]:
    """Asks a REST server of two versions."""
    root = tmp_path_factory.mktemp("half_plus_two")
    for version, add in ((123, 2.0), (124, 3.0)):
        graphs.write_half_plus(root / f"{version:08}", add=add)
    extra = {"version_policy": {"all": {}}, "version_labels": {"stable": 123, "canary": 124}}
    with rest_in_thread(own=settings(root, "half", **extra)) as running:
        yield lambda *words: ask_server(running.port, *words)


ADDRESSES = {
    "": 3.5,
    "/versions/123": 2.5,
    "/versions/124": 3.5,
    "/labels/stable": 2.5,
    "/labels/canary": 3.5,
}


@pytest.mark.parametrize("place", ADDRESSES)
def test_versions_and_labels_are_addresses_of_every_verb(ask: Callable[..., tuple[int, Any]], place: str):
    wanted = ADDRESSES[place]
    base = f"/v1/models/half{place}"
    assert ask("POST", f"{base}:predict", {"instances": [1.0, 2.0, 5.0]}) == (
        200,
        {"predictions": [wanted, wanted + 0.5, wanted + 2]},
    )
    body = {"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}]}
    assert ask("POST", f"{base}:regress", body) == (200, {"results": [wanted]})
    body = {"signature_name": "classify_x_to_y", "examples": [{"x": 1.0}]}
    assert ask("POST", f"{base}:classify", body) == (200, {"results": [[["", wanted]]]})


NOWHERE = {
    "/v1/models/nobody:regress": (404, "model 'nobody' is not known"),
    "/v1/models/nobody/labels/stable:predict": (404, "model 'nobody' is not known"),
    "/v1/models/half/versions/7:classify": (404, "has no version '7'"),
    "/v1/models/half/labels/nope:predict": (404, "no version labelled 'nope'; its labels are 'canary', 'stable'"),
    "/v1/models/half:rank": (404, "':predict', ':explain', ':classify', ':regress'"),
    "/v1/models/half/labels/stable:rank": (404, "':rank' is nothing that V1 does"),
}


@pytest.mark.parametrize("path", NOWHERE)
def test_an_address_that_leads_nowhere_is_told(ask: Callable[..., tuple[int, Any]], path: str):
    status, words = NOWHERE[path]
    found, answer = ask("POST", path, {"examples": [{"x": 1.0}]})
    assert (found, words in answer["error"]) == (status, True), answer
    for verb in ("GET", "DELETE"):
        assert ask(verb, "/v1/models/half:regress")[0] in (404, 405)


def test_a_call_of_a_loaded_signature_is_safe_from_many_threads(repository: Path):
    from concurrent.futures import ThreadPoolExecutor

    from tensorflow_server import TensorflowModel

    model = TensorflowModel(ModelSettings(name="m", model_dir=repository / "v1" / "00000123"))
    model.load()
    inputs = [np.full((4, 1), n, np.float32) for n in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: model.predict({"x": x}, Call())["y"], inputs))
    assert [y[0, 0] for y in found] == [n / 2 + 2 for n in range(64)]
    model.unload()
