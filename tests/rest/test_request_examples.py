"""Examples of requests: what a shell sends, and what Python runs, is a request that the model takes."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from typing import Any

import numpy as np
import pytest

from serinus.protocol.types import ModelMetadata, TensorSpec
from serinus.server.rest.pages.request_examples import curl_example, fits_a_page, infer_path, python_example

BASE = "http://127.0.0.1:8080"
X, MAYBE = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("maybe", "FP32", (-1,), optional=True)
TEXT, MANY = TensorSpec("it's", "BYTES", (-1,)), TensorSpec("image", "UINT8", (-1, 16, 17))
Y, MORE = TensorSpec("y", "FP32", (-1,)), TensorSpec("more", "FP32", (-1,), optional=True)


def model(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (Y,), name: str = "m") -> ModelMetadata:
    return ModelMetadata(name, (), "", inputs, outputs)


@pytest.mark.parametrize(
    ("name", "path"),
    [("m", "/v2/models/m/infer"), ("a/b c", "/v2/models/a%2Fb%20c/infer"), ("é", "/v2/models/%C3%A9/infer")],
)
def test_a_name_is_quoted_in_its_path(name: str, path: str):
    assert infer_path(model(X, name=name)) == path


@pytest.mark.parametrize(
    ("inputs", "fits"), [((), True), ((X,), True), ((MANY,), False), ((X, MANY), False), ((MAYBE, X), True)]
)
def test_a_page_holds_inputs_of_few_values(inputs: tuple[TensorSpec, ...], fits: bool):
    assert fits_a_page(model(*inputs)) is fits


def test_an_optional_input_of_many_values_fits_for_it_is_left_out():
    assert fits_a_page(model(X, TensorSpec("big", "FP32", (-1, 1000), optional=True)))


@pytest.mark.parametrize("token", [None, False, True])
def test_a_line_for_a_shell_sends_the_request(token: bool | None):
    line = curl_example(model(X, MAYBE, TEXT), BASE, **({} if token is None else {"token": token}))
    words = shlex.split(line.replace("\\\n", ""))
    assert words[:3] == ["curl", "-s", f"{BASE}/v2/models/m/infer"]
    rest = words[3:]
    assert (rest[:2] == ["-H", "Authorization: Bearer $TOKEN"]) is bool(token)
    assert rest[-4:-1] == ["-H", "Content-Type: application/json", "-d"]
    assert len(rest) == (6 if token else 4)
    assert json.loads(rest[-1]) == {
        "inputs": [
            {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]},
            {"name": "it's", "shape": [1], "datatype": "BYTES", "data": ["text"]},
        ]
    }


@pytest.mark.parametrize("token", [False, True])
def test_of_many_values_a_program_makes_the_request(token: bool):
    line = curl_example(model(MANY, MAYBE, TEXT), BASE, token=token)
    program, _, curl = line.partition(" |\n")
    words = shlex.split(program)
    assert words[:2] == ["python3", "-c"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(words[2], {})  # as a shell would have it run
    image, text = json.loads(printed.getvalue())["inputs"]
    assert (image["name"], image["shape"], image["datatype"]) == ("image", [1, 16, 17], "UINT8")
    assert image["data"] == [0] * (16 * 17)
    assert text == {"name": "it's", "shape": [1], "datatype": "BYTES", "data": ["text"]}
    asked = shlex.split(curl.replace("\\\n", ""))
    assert asked[:3] == ["curl", "-s", f"{BASE}/v2/models/m/infer"]
    assert asked[-2:] == ["-d", "@-"]
    assert ("Authorization: Bearer $TOKEN" in asked) is token


class Asked(contextlib.AbstractContextManager[Any]):
    """Stands for the client in the program's own words: it notes what it is given."""

    made: list[tuple[Any, ...]] = []  # noqa: RUF012 # emptied by each run

    def __init__(self, base: str, **options: Any) -> None:
        self.made.append((base, options))

    def __exit__(self, *_: object) -> None:
        return None

    def infer(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, str]:
        self.made.append((name, inputs))
        return {"y": "the answer"}


def run(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[Any, ...]], str]:
    Asked.made.clear()
    monkeypatch.setattr("serinus.client.Client", Asked)
    monkeypatch.setenv("TOKEN", "secret")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(text, {})  # as a reader would
    return list(Asked.made), printed.getvalue().strip()


@pytest.mark.parametrize("token", [None, False, True])
def test_a_program_asks_with_arrays_and_shows_the_first_output(token: bool | None, monkeypatch: pytest.MonkeyPatch):
    text = python_example(model(X, MAYBE, TEXT, outputs=(MORE, Y)), BASE, **({} if token is None else {"token": token}))
    (made, asked), shown = run(text, monkeypatch)
    assert made == (BASE, {"token": "secret"} if token else {})
    assert asked[0] == "m"
    assert {name: (array.shape, array.dtype, array.ravel()[0]) for name, array in asked[1].items()} == {
        "x": ((1, 3), np.float32, 0),
        "it's": ((1,), object, "text"),
    }
    assert shown == "the answer"
    assert ("import os" in text) is bool(token)


def test_a_model_that_tells_no_outputs_has_all_of_them_shown(monkeypatch: pytest.MonkeyPatch):
    for outputs in ((), (MORE,)):
        _, shown = run(python_example(model(X, outputs=outputs), BASE), monkeypatch)
        assert shown == "{'y': 'the answer'}"


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [
        ("BOOL", bool),
        ("BF16", np.float32),
        *((f"FP{bits}", np.dtype(f"float{bits}")) for bits in (16, 32, 64)),
        *((f"{sign}INT{bits}", np.dtype(f"{sign}int{bits}".lower())) for sign in ("", "U") for bits in (8, 16, 32, 64)),
    ],
)
def test_each_datatype_is_NumPys(datatype: str, dtype: Any, monkeypatch: pytest.MonkeyPatch):
    (_, (_, inputs)), _ = run(python_example(model(TensorSpec("x", datatype, (-1, 2))), BASE), monkeypatch)
    assert inputs["x"].dtype == dtype
    assert inputs["x"].shape == (1, 2)
