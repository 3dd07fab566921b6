"""Checks of requests and answers, one rule at a time and without a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serinus import InferRequest, Model, ModelSettings, RequestedOutput, Tensor, TensorSpec
from serinus.dataplane.servables.checks import OutputChecks, RequestChecks
from serinus.errors import InvalidInput, ModelFailed
from serinus.model import Signature


def model(
    *inputs: TensorSpec,
    outputs: tuple[TensorSpec, ...] = (),
    name: str = "m",
    base: type[Model] = Model,
    **attributes: Any,
) -> Model:
    made = type("Given", (base,), {"predict": lambda self, inputs, call: inputs, **attributes})(
        ModelSettings(name=name)
    )
    made.inputs, made.outputs = inputs, outputs
    return made


def request(*tensors: Tensor, outputs: list[RequestedOutput] | None = None, **parameters: Any) -> InferRequest:
    return InferRequest("m", list(tensors), parameters=parameters, outputs=outputs)


def tensor(name: str, *shape: int, dtype: Any = np.float32) -> Tensor:
    return Tensor.of(name, np.zeros(shape, dtype))


X = TensorSpec("x", "FP32", (-1, 2))
Z = TensorSpec("z", "INT64", (-1,))


def refused(checks: RequestChecks, asked: InferRequest) -> str:
    with pytest.raises(InvalidInput) as caught:
        checks.admit(asked)
    return str(caught.value)


@pytest.mark.parametrize(
    "server_parameter", [{}, {"timeout": 1}, {"priority": 1}, {"binary_data_output": True}], ids=str
)
def test_requests_that_ask_for_nothing_special_share_one_key(server_parameter: dict[str, Any]):
    checks = RequestChecks(model(X))
    plain = checks.admit(request(tensor("x", 1, 2)))[0]
    key, arrays, rows = checks.admit(request(tensor("x", 3, 2), **server_parameter))
    assert key is plain
    assert (key.names, rows, arrays[0].shape) == (("x",), 3, (3, 2))
    assert key.call.parameters == {}
    assert key.call.outputs is None


def test_several_fixed_inputs_share_one_key_in_whatever_order_they_come():
    checks = RequestChecks(model(X, Z))
    first, arrays, rows = checks.admit(request(tensor("z", 3, dtype=np.int64), tensor("x", 3, 2)))
    assert first is checks.admit(request(tensor("x", 1, 2), tensor("z", 1, dtype=np.int64)))[0]
    assert first.names == ("x", "z")
    assert [array.shape for array in arrays] == [(3, 2), (3,)]
    assert rows == 3


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        (request(tensor("x", 1, 2), a=1), False),
        (request(tensor("x", 1, 2), a=2), True),
        (request(tensor("x", 1, 2), a=2.0), False),
        (request(tensor("x", 1, 2), a=2, b=1), False),
        (request(tensor("x", 1, 2), a=2, timeout=5), True),
        (request(tensor("x", 1, 2), a="2"), False),
        (request(tensor("x", 1, 2), a=2, outputs=[RequestedOutput("y")]), False),
        (request(tensor("x", 1, 2)), False),
    ],
    ids=["value", "the same", "type", "one more", "the server's", "text", "outputs", "none"],
)
def test_parameters_and_outputs_that_differ_make_keys_that_differ(asked: InferRequest, same: bool):
    checks = RequestChecks(model(X, outputs=(TensorSpec("y", "FP32", (-1, 2)),)))
    key = checks.admit(request(tensor("x", 1, 2), a=2))[0]
    assert (checks.admit(asked)[0].value == key.value) is same
    assert key.call.parameters == {"a": 2}


def test_order_of_parameters_and_of_outputs_is_no_difference():
    outputs = (TensorSpec("y", "FP32", (-1,)), TensorSpec("w", "FP32", (-1,)))
    checks = RequestChecks(model(X, outputs=outputs))
    wanted = [RequestedOutput("y"), RequestedOutput("w")]
    first = checks.admit(InferRequest("m", [tensor("x", 1, 2)], parameters={"a": 1, "b": 2}, outputs=wanted))[0]
    second = checks.admit(InferRequest("m", [tensor("x", 1, 2)], parameters={"b": 2, "a": 1}, outputs=wanted[::-1]))[0]
    assert first.value == second.value
    assert first.call.outputs == {"y", "w"}


@pytest.mark.parametrize(
    ("spec", "first", "second", "same"),
    [
        (TensorSpec("x", "FP32", (-1, -1)), (2, 3), (5, 3), True),
        (TensorSpec("x", "FP32", (-1, -1)), (2, 3), (2, 4), False),
        (TensorSpec("x", "FP32", (-1, 3, -1)), (2, 3, 1), (1, 3, 1), True),
        (TensorSpec("x", "FP32", (-1, 3, -1)), (2, 3, 1), (2, 3, 2), False),
    ],
)
def test_shapes_beyond_the_rows_make_keys(spec: TensorSpec, first: Any, second: Any, same: bool):
    checks = RequestChecks(model(spec))
    keys = [checks.admit(request(tensor("x", *shape)))[0].value for shape in (first, second)]
    assert (keys[0] == keys[1]) is same
    assert keys[0] is not None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            request(tensor("x", 1, 3)),
            "input 'x': shape [1, 3] has 3 in dimension 1, the model takes 2: [-1, 2] (-1: any)",
        ),
        (request(tensor("x", 2)), "input 'x': shape [2] has 1 dimensions, the model takes 2: [-1, 2]"),
        (request(tensor("x", 1, 2, 1)), "shape [1, 2, 1] has 3 dimensions, the model takes 2: [-1, 2]"),
        (request(tensor("x", 1, 2, dtype=np.float64)), "input 'x': datatype is FP64, the model takes FP32"),
        (request(tensor("y", 1, 2)), "input 'y' is not one of model 'm'; its inputs are 'x'"),
        (request(), "input 'x' is missing; model 'm' takes 'x', got none"),
        (request(tensor("x", 1, 2), tensor("x", 1, 2)), "input 'x' is given twice"),
        (request(tensor("x", 1, 2), tensor("q", 1)), "input 'q' is not one of model 'm'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(asked: InferRequest, said: str):
    assert said in refused(RequestChecks(model(X)), asked)


def test_inputs_of_one_request_have_the_same_number_of_rows():
    said = refused(RequestChecks(model(X, Z)), request(tensor("x", 3, 2), tensor("z", 2, dtype=np.int64)))
    assert said == "input 'z' has 2 rows, input 'x' has 3: all inputs of a request have the same number of rows"


def test_an_optional_input_may_be_left_out_and_then_has_a_key_of_its_own():
    checks = RequestChecks(model(X, TensorSpec("z", "INT64", (-1,), optional=True)))
    without, arrays, _ = checks.admit(request(tensor("x", 1, 2)))
    with_it = checks.admit(request(tensor("x", 1, 2), tensor("z", 1, dtype=np.int64)))[0]
    assert (without.names, with_it.names, len(arrays)) == (("x",), ("x", "z"), 1)
    assert without.value != with_it.value


def test_many_names_are_told_in_part():
    specs = tuple(TensorSpec(f"x{n}", "FP32", (-1,)) for n in range(20))
    said = refused(RequestChecks(model(*specs)), request(tensor("q", 1)))
    assert said.endswith("'x14', 'x15', and 4 more")
    sixteen = refused(RequestChecks(model(*specs[:16])), request(tensor("q", 1)))
    assert sixteen.endswith("'x14', 'x15'")


@pytest.mark.parametrize("any_name", [False, True])
@pytest.mark.parametrize("parameters", [{}, {"a": 1}], ids=["plain", "general"])
def test_the_only_input_may_have_any_name_where_the_model_says_so(any_name: bool, parameters: dict[str, int]):
    checks = RequestChecks(model(X, any_input_name=any_name))
    asked = request(tensor("whatever", 1, 2), **parameters)
    if any_name:
        assert checks.admit(asked)[0].names == ("x",)
    else:
        assert "input 'whatever' is not one of model 'm'" in refused(checks, asked)


def test_of_two_inputs_each_has_its_name_whatever_the_model_says():
    checks = RequestChecks(model(X, Z, any_input_name=True))
    assert "input 'q' is not one of" in refused(checks, request(tensor("q", 1, 2)))


@pytest.mark.parametrize(
    ("spec", "attributes", "batchable"),
    [
        (X, {}, True),
        (X, {"batchable": False}, False),
        (TensorSpec("x", "FP32", (1, 2)), {}, False),
        (TensorSpec("x", "FP32", (2, -1)), {}, False),
        (TensorSpec("x", "FP32", ()), {}, False),
    ],
    ids=["free", "the model's word", "fixed", "fixed first", "scalar"],
)
def test_requests_share_batches_where_the_rows_are_free(spec: TensorSpec, attributes: dict[str, Any], batchable: bool):
    assert RequestChecks(model(spec, **attributes)).batchable is batchable


def test_requests_that_are_not_batched_have_a_key_each_and_are_one_row():
    checks = RequestChecks(model(TensorSpec("x", "FP32", (-1, 2)), batchable=False))
    first, _, rows = checks.admit(request(tensor("x", 5, 2)))
    second, _, none = checks.admit(request(tensor("x", 0, 2)))
    assert first.value != second.value
    assert (rows, none) == (1, 0), "a request of no rows stays one: it is the client's fault if it fails"


def test_a_model_without_inputs_takes_anything_in_the_order_of_names():
    checks = RequestChecks(model())
    key, arrays, rows = checks.admit(request(tensor("b", 4), tensor("a", 4, 7)))
    assert (key.names, [a.shape for a in arrays], rows) == (("a", "b"), [(4, 7), (4,)], 4)
    assert "shape [] has no rows" in refused(checks, request(tensor("a")))
    assert "has 3 rows" in refused(checks, request(tensor("a", 4), tensor("b", 3)))


@pytest.mark.parametrize(
    ("array", "datatype", "expected"),
    [
        (np.array([[1.5]], np.float64), "FP32", [[1.5]]),
        (np.array([[np.inf]], np.float64), "FP32", [[np.inf]]),
        (np.array([[3]], np.int64), "FP32", [[3.0]]),
        (np.array([[True]]), "FP32", [[1.0]]),
        (np.array([[3]], np.uint8), "FP64", [[3.0]]),
        (np.array([[-128, 127]], np.int64), "INT8", [[-128, 127]]),
        (np.array([[0, 255]], np.int64), "UINT8", [[0, 255]]),
        (np.array([[7]], np.uint64), "INT64", [[7]]),
        (np.array([[2**31]], np.uint32), "INT64", [[2**31]]),
        (np.zeros((0, 1), np.int64), "INT8", []),
    ],
)
def test_a_lenient_model_gets_its_datatype_where_no_value_is_lost(array: np.ndarray, datatype: str, expected: Any):
    checks = RequestChecks(model(TensorSpec("x", datatype, (-1, -1)), coerce=True))
    _, (got,), _ = checks.admit(request(Tensor.of("x", array)))
    assert got.tolist() == expected
    assert got.dtype == np.dtype({"FP32": "f4", "FP64": "f8", "INT8": "i1", "UINT8": "u1", "INT64": "i8"}[datatype])


@pytest.mark.parametrize(
    ("array", "datatype", "said"),
    [
        (np.array([[1e39]], np.float64), "FP32", "a value is too large for FP32"),
        (np.array([[128]], np.int64), "INT8", "a value does not fit INT8"),
        (np.array([[-129]], np.int64), "INT8", "a value does not fit INT8"),
        (np.array([[-1]], np.int64), "UINT8", "a value does not fit UINT8"),
        (np.array([[2**63]], np.uint64), "INT64", "a value does not fit INT64"),
        (np.array([[1.0]], np.float32), "INT64", "no number is lost only from integers to floats"),
        (np.array([[True]]), "INT64", "datatype is BOOL, the model takes INT64"),
        (np.array([[b"1"]], object), "FP32", "datatype is BYTES, the model takes FP32"),
    ],
)
def test_a_lenient_model_refuses_what_would_lose_its_value(array: np.ndarray, datatype: str, said: str):
    checks = RequestChecks(model(TensorSpec("x", datatype, (-1, -1)), coerce=True))
    assert said in refused(checks, request(Tensor.of("x", array)))


@pytest.mark.parametrize(
    ("coerce", "shape", "fits"),
    [
        (True, (3, 1), True),
        (True, (3, 2), False),
        (False, (3, 1), True),
        (False, (3, 2), False),
        (False, (1, 3), False),
        (True, (1, 3), False),
    ],
)
def test_one_column_is_a_row_of_values_as_the_configuration_says(coerce: bool, shape: tuple[int, int], fits: bool):
    checks = RequestChecks(model(TensorSpec("x", "FP32", (-1,)), coerce=coerce))
    if fits:
        _, (got,), rows = checks.admit(request(tensor("x", *shape)))
        assert (got.shape, rows) == ((3,), 3)
    else:
        assert "has 2 dimensions, the model takes 1" in refused(checks, request(tensor("x", *shape)))


def test_a_scalar_may_come_as_the_configuration_says_and_a_list_of_any_length_is_none():
    spec = TensorSpec("x", "FP32", ())
    checks = RequestChecks(model(spec, batchable=False))
    for shape in ((), (1,)):
        _, (got,), _ = checks.admit(request(tensor("x", *shape)))
        assert got.shape == ()
    assert "has 1 dimensions, the model takes 0" in refused(checks, request(tensor("x", 2)))
    words = RequestChecks(model(TensorSpec("x", "FP32", (-1,)), batchable=False))
    assert "has 2 dimensions, the model takes 1" in refused(words, request(tensor("x", 3, 1)))


Y = TensorSpec("y", "FP32", (-1, 2), labels=("a", "b"))
TEXT = TensorSpec("t", "BYTES", (-1,))


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([RequestedOutput("q")], "output 'q' is not one of model 'm'; its outputs are 'y', 't'"),
        ([RequestedOutput("y"), RequestedOutput("y")], "output 'y' is asked for twice"),
        (
            [RequestedOutput("t", {"classification": 1})],
            "output 't': classification needs numbers, the output is BYTES",
        ),
    ],
)
def test_outputs_that_cannot_be_given_are_refused(outputs: list[RequestedOutput], said: str):
    checks = RequestChecks(model(X, outputs=(Y, TEXT)))
    assert said in refused(checks, request(tensor("x", 1, 2), outputs=outputs))
    key = checks.admit(request(tensor("x", 1, 2), outputs=[RequestedOutput("y", {"classification": 1})]))[0]
    assert key.call.outputs == {"y"}


class Signed(Model):
    """Two signatures: one of rows, one that is not batched."""

    inputs = (X,)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    unbatched_signatures = frozenset({"whole"})

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.signatures = {
            "rows": Signature((TensorSpec("r", "INT64", (-1,)),), (TensorSpec("s", "INT64", (-1,)),)),
            "whole": Signature((TensorSpec("w", "INT64", (-1,)),), (TensorSpec("v", "INT64", (-1,)),)),
            "fixed": Signature((TensorSpec("f", "INT64", (-1,)),), (TensorSpec("g", "INT64", (1,)),)),
        }

    def predict(self, inputs, call):
        return {}


def test_a_signature_has_inputs_keys_and_batches_of_its_own():
    checks = RequestChecks(Signed(ModelSettings(name="m")))
    plain = checks.admit(request(tensor("x", 1, 2)))[0]
    rows = [checks.admit(request(tensor("r", n, dtype=np.int64), signature_name="rows"))[0] for n in (1, 2)]
    whole = [checks.admit(request(tensor("w", 1, dtype=np.int64), signature_name="whole"))[0] for _ in range(2)]
    assert rows[0].value == rows[1].value != plain.value
    assert rows[0].call.parameters == {"signature_name": "rows"}
    assert whole[0].value != whole[1].value
    assert {name: own.batchable for name, own in checks.signatures.items()} == {
        "rows": True,
        "whole": False,
        "fixed": False,
    }
    assert "input 'r' is missing" in refused(checks, request(signature_name="rows"))


@pytest.mark.parametrize("name", ["nobody", 7, True])
def test_a_signature_that_is_not_there_is_refused_with_those_that_are(name: Any):
    checks = RequestChecks(Signed(ModelSettings(name="m")))
    said = refused(checks, request(tensor("x", 1, 2), signature_name=name))
    assert said == f"parameter 'signature_name' is {name!r}; the signatures of model 'm' are 'rows', 'whole', 'fixed'"


def answer(checks: OutputChecks, outputs: Any, rows: int = 2, wanted: Any = None) -> Any:
    return [(name, datatype, array.tolist()) for name, datatype, array, _ in checks.check(outputs, rows, wanted)]


ONE = TensorSpec("y", "FP32", (-1, 1))
MAYBE = TensorSpec("p", "INT64", (-1,), optional=True)


def outputs_of(*specs: TensorSpec, batchable: bool = True) -> OutputChecks:
    return OutputChecks(model(X, outputs=specs), batchable=batchable)


def test_answers_come_in_the_models_order_and_only_those_that_were_asked_for():
    y, p = np.array([[1], [2]], np.float32), np.array([3, 4])
    checks = outputs_of(ONE, MAYBE)
    both = [("y", "FP32", [[1], [2]]), ("p", "INT64", [3, 4])]
    assert answer(checks, {"p": p, "y": y}) == both
    assert answer(checks, {"y": y}) == both[:1], "an optional one may be missing"
    assert answer(checks, {"p": p, "y": y}, wanted={"p"}) == both[1:]
    assert answer(checks, {"p": p, "y": y, "more": 1}, wanted={"y"}) == both[:1]


@pytest.mark.parametrize(
    ("outputs", "wanted", "said"),
    [
        ([1], None, "model 'm' did not return its outputs by name"),
        ({}, None, "model 'm' did not return its output 'y'"),
        ({"y": np.zeros((2, 1), np.float32)}, {"p"}, "model 'm' did not return its output 'p'"),
        ({"y": np.zeros((2, 1))}, None, "output 'y' has type float64, its metadata promises FP32"),
        ({"y": np.zeros(2, np.float32)}, None, "output 'y' has shape [2], its metadata promises [-1, 1]"),
        ({"y": np.zeros((3, 1), np.float32)}, None, "output 'y' has shape [3, 1], its inputs had 2 rows"),
        ({"y": [[1.0], [2.0]]}, None, "output 'y' is not an array"),
        ({"y": np.array([["a"], ["b"]])}, None, "output 'y' has type <U1, its metadata promises FP32"),
    ],
)
def test_an_answer_that_was_not_promised_is_the_models_failure(outputs: Any, wanted: Any, said: str):
    with pytest.raises(ModelFailed) as caught:
        outputs_of(ONE, MAYBE).check(outputs, 2, wanted)
    assert said in str(caught.value)


@pytest.mark.parametrize("specs", [(TEXT,), ()], ids=["declared", "not declared"])
@pytest.mark.parametrize(
    "array",
    [
        np.array(["é", "b"]),
        np.array([b"\xc3\xa9", b"b"]),
        np.array(["é", b"b"], object),
        np.array([b"\xc3\xa9", b"b"], object),
    ],
    ids=["str", "bytes", "mixed objects", "objects"],
)
def test_strings_become_bytes(specs: tuple[TensorSpec, ...], array: np.ndarray):
    assert answer(outputs_of(*specs), {"t": array}) == [("t", "BYTES", ["é".encode(), b"b"])]
    square = outputs_of(*(TensorSpec("t", "BYTES", (-1, -1)) for _ in specs))
    assert answer(square, {"t": array.reshape(2, 1)}) == [("t", "BYTES", [["é".encode()], [b"b"]])]


def test_what_is_neither_bytes_nor_string_is_the_models_failure():
    with pytest.raises(ModelFailed, match="output 't' holds something that is neither bytes nor string"):
        outputs_of(TEXT).check({"t": np.array([b"a", 1], object)}, 2, None)


def test_a_model_that_declares_no_outputs_gives_what_it_has():
    checks = outputs_of()
    y, z = np.zeros((2, 3), np.float64), np.zeros(2, np.int8)
    assert [row[:2] for row in answer(checks, {"y": y, "z": z})] == [("y", "FP64"), ("z", "INT8")]
    assert [row[0] for row in answer(checks, {"y": y, "z": z}, wanted={"z"})] == ["z"]
    with pytest.raises(InvalidInput, match="output 'a' is not one of model 'm'; its outputs are 'y', 'z'"):
        checks.check({"y": y, "z": z}, 2, frozenset({"z", "q", "a"}))
    with pytest.raises(ModelFailed, match="output 'c' has type complex64, which the protocol cannot carry"):
        checks.check({"c": np.zeros(2, np.complex64)}, 2, None)
    with pytest.raises(ModelFailed, match=r"output 's' has shape \[\], its inputs had 2 rows"):
        checks.check({"s": np.float32(1)}, 2, None)


def test_a_model_that_is_not_batched_answers_any_number_of_rows():
    loose = outputs_of(ONE, batchable=False)
    assert answer(loose, {"y": np.zeros((5, 1), np.float32)}, rows=2) == [("y", "FP32", [[0]] * 5)]
    scalar = outputs_of(TensorSpec("s", "FP32", ()), batchable=False)
    assert answer(scalar, {"s": np.float32(3)}) == [("s", "FP32", 3.0)]
