"""What a client is told of a request that is wrong: inference_rest.md, "Inference Response JSON Error Object", on both transports.

The table is whole: what is missing, of another kind, beyond its bounds or not JSON at all. What the HTTP around it does is in
`test_errors.py` and `tests/http`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from conformance_support import Case, Server, case, ids, json_tensor, server_here
from http_support import TRANSPORTS


@pytest.fixture(scope="module", params=TRANSPORTS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with server_here(http=request.param) as running:
        yield running


def scores() -> dict[str, Any]:
    return json_tensor("scores", "FP32", [1, 4], [1.0, 3.0, 0.5, 2.0])


GOOD = {"inputs": [scores()]}

# Requests that are wrong: what they hold beside or in place of the good one, and words of the message.
WRONG: list[tuple[str, Any, tuple[str, ...]]] = [
    ("empty-body", b"", ("empty",)),
    ("blank-body", b"  ", ("JSON",)),
    ("no-json", b"hello", ("JSON",)),
    ("cut-short", b'{"inputs": [', ("JSON",)),
    ("two-documents", b"{}{}", ("JSON",)),
    ("trailing-comma", b'{"inputs": [],}', ("JSON",)),
    ("single-quotes", b"{'inputs': []}", ("JSON",)),
    ("comment", b'{"inputs": [] /* none */}', ("JSON",)),
    ("not-utf-8", b'{"id": "\xff"}', ("JSON",)),
    ("utf-16", '{"inputs": []}'.encode("utf-16"), ("JSON",)),
    ("lone-surrogate", b'{"inputs": [], "id": "\\ud800"}', ("JSON",)),
    ("array", [], ("an array",)),
    ("string", b'"inputs"', ("string",)),
    ("number", b"1", ("object",)),
    ("null", b"null", ("null",)),
    ("empty-object", {}, ("'inputs'", "missing")),
    ("inputs-null", {"inputs": None}, ("'inputs'",)),
    ("inputs-empty", {"inputs": []}, ("'inputs'", "empty")),
    ("inputs-object", {"inputs": {"scores": [1]}}, ("'inputs'", "object")),
    ("inputs-string", {"inputs": "scores"}, ("'inputs'",)),
    ("input-number", {"inputs": [1]}, ("input 0",)),
    ("input-null", {"inputs": [None]}, ("input 0", "null")),
    ("input-array", {"inputs": [[]]}, ("input 0",)),
    ("input-empty", {"inputs": [{}]}, ("input 0", "'name'")),
    ("id-number", {**GOOD, "id": 1}, ("'id'", "string")),
    ("id-true", {**GOOD, "id": True}, ("'id'",)),
    ("id-object", {**GOOD, "id": {}}, ("'id'",)),
    ("id-array", {**GOOD, "id": ["1"]}, ("'id'",)),
    ("parameters-array", {**GOOD, "parameters": []}, ("'parameters'",)),
    ("parameters-string", {**GOOD, "parameters": "x"}, ("'parameters'",)),
    ("parameter-null", {**GOOD, "parameters": {"p": None}}, ("'p'", "null")),
    ("parameter-object", {**GOOD, "parameters": {"p": {}}}, ("'p'", "object")),
    ("parameter-array", {**GOOD, "parameters": {"p": [1]}}, ("'p'", "array")),
    ("timeout-text", {**GOOD, "parameters": {"timeout": "soon"}}, ("timeout",)),
    ("outputs-object", {**GOOD, "outputs": {}}, ("'outputs'",)),
    ("outputs-string", {**GOOD, "outputs": "classes"}, ("'outputs'",)),
    ("output-string", {**GOOD, "outputs": ["classes"]}, ("output 0", "object")),
    ("output-unnamed", {**GOOD, "outputs": [{}]}, ("output 0", "'name'")),
    ("output-name-empty", {**GOOD, "outputs": [{"name": ""}]}, ("output 0",)),
    ("output-name-number", {**GOOD, "outputs": [{"name": 1}]}, ("output 0",)),
    ("output-unknown", {**GOOD, "outputs": [{"name": "nothing"}]}, ("'nothing'", "'classes'")),
    ("output-unknown-beside-known", {**GOOD, "outputs": [{"name": "classes"}, {"name": "no"}]}, ("'no'",)),
    ("output-twice", {**GOOD, "outputs": [{"name": "classes"}] * 2}, ("'classes'", "twice")),
    ("output-parameters-array", {**GOOD, "outputs": [{"name": "classes", "parameters": []}]}, ("'parameters'",)),
    ("input-twice", {"inputs": [scores(), scores()]}, ("'scores'", "twice")),
    ("input-unknown", {"inputs": [{**scores(), "name": "x"}]}, ("'x'", "'scores'")),
    ("input-too-many", {"inputs": [scores(), {**scores(), "name": "more"}]}, ("'more'",)),
    ("nested-too-deep", b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", ("nest",)),
    ("nested-deep", b'{"inputs": ' + b"[" * 200 + b"]" * 200 + b"}", ("nest",)),
]
for field in ("name", "shape", "datatype", "data"):
    tensor = scores()
    del tensor[field]
    WRONG.append((f"{field}-missing", {"inputs": [tensor]}, (f"'{field}'",)))
    WRONG.append((f"{field}-null", {"inputs": [{**scores(), field: None}]}, (f"'{field}'",)))
for field, values in {
    "name": ("", 1, True, [], {}),
    "shape": (
        "1,4",
        4,
        {},
        [1, -4],
        [1.5, 4],
        ["1", 4],
        [True, 4],
        [None, 4],
        [[1, 4]],
        [2**64 - 1, 4],
        [-1, -1],
        [-1, 4],
    ),
    "datatype": ("", "fp32", "FLOAT", "FP128", "STRING", 32, True, [], {}, "FP32 "),
    "data": ("1,2,3,4", 1, True, {}, [], [1], [1, 2, 3], [1, 2, 3, 4, 5], [[1, 2], [3, 4]], [[[1, 2, 3, 4]]]),
    "parameters": (1, "x", [], {"p": None}, {"p": []}, {"p": {}}),
}.items():
    for index, value in enumerate(values):
        WRONG.append((f"{field}-wrong-{index}", {"inputs": [{**scores(), field: value}]}, ()))
for index, data in enumerate(
    (
        ["1", "2", "3", "4"],
        [[1, 2, 3, 4], None],
        [1, 2, 3, True],
        [1, 2, 3, {}],
        [1, 2, 3, [4]],
        [[1, 2, 3], 4],
        [[1, 2, 3, 4], []],
    )
):
    WRONG.append((f"data-kinds-{index}", {"inputs": [{**scores(), "data": data}]}, ("'scores'",)))


@pytest.mark.parametrize(("body", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_request_is_400_in_words(server: Server, body: Any, words: tuple[str, ...]):
    answer = server.ask("POST", "/v2/models/labels/infer", body)
    assert answer.status == 400, answer.body
    for word in words:
        assert word in answer.error
    for secret in ("Traceback", "orjson", "Error", "numpy", ".py", "<class"):
        assert secret not in answer.error
    assert answer.headers["content-type"] == "application/json"
    assert server.infer("labels", scores()).status == 200, "the connection lives on"


TABLE: list[Case] = []


@case(TABLE, "a-missing-input-is-named", "good practice")
def _(s: Server) -> None:
    s.refused(400, "simple", json_tensor("INPUT0", "INT32", [1, 4], [1] * 4), says=("'INPUT1'", "missing"))


@case(TABLE, "inputs-of-different-rows-are-refused", "good practice")
def _(s: Server) -> None:
    inputs = [json_tensor(f"INPUT{i}", "INT32", [1 + i, 4], [1] * 4 * (1 + i)) for i in (0, 1)]
    s.refused(400, "simple", *inputs, says=("'INPUT1'", "rows"))


@case(TABLE, "another-datatype-names-both", "good practice")
def _(s: Server) -> None:
    s.refused(400, "labels", json_tensor("scores", "FP64", [1, 4], [1] * 4), says=("'scores'", "FP64", "FP32"))


@case(TABLE, "another-rank-names-both", "good practice")
def _(s: Server) -> None:
    s.refused(400, "labels", json_tensor("scores", "FP32", [4], [1] * 4), says=("'scores'", "[4]", "[-1, 4]"))


@case(TABLE, "another-dimension-names-both", "good practice")
def _(s: Server) -> None:
    s.refused(400, "labels", json_tensor("scores", "FP32", [1, 5], [1] * 5), says=("'scores'", "[1, 5]", "[-1, 4]"))


@case(TABLE, "a-count-that-does-not-fit-names-both", "good practice")
def _(s: Server) -> None:
    s.refused(400, "labels", json_tensor("scores", "FP32", [1, 4], [1] * 3), says=("'scores'", "4", "3"))


for shape, data in (
    ([2, 2], [[1, 2, 3, 4]]),
    ([2, 2], [[1], [2], [3], [4]]),
    ([2, 2], [[1, 2], [3]]),
    ([2, 2], [[1, 2], 3, 4]),
):

    @case(TABLE, f"ragged-or-otherwise-nested-{data}", "inference_rest.md, Tensor Data: natural or flat")
    def _(s: Server, shape: list[int] = shape, data: Any = data) -> None:
        s.refused(400, "identity", json_tensor("t", "INT64", shape, data), says=("'t'",))


@case(TABLE, "an-unknown-model-is-404", "good practice")
def _(s: Server) -> None:
    answer = s.infer("nobody", scores())
    assert answer.status == 404
    assert "'nobody'" in answer.error


@case(TABLE, "nan-is-no-number", "RFC 8259, 6")
def _(s: Server) -> None:
    for text in (b"NaN", b"Infinity", b"-Infinity", b"nan", b"1e999", b"01", b"+1", b".5", b"1.", b"0x1", b"--1"):
        body = b'{"inputs":[{"name":"scores","shape":[1,4],"datatype":"FP32","data":[1,2,3,' + text + b"]}]}"
        assert s.ask("POST", "/v2/models/labels/infer", body).status == 400, text
        assert s.alive()


@case(TABLE, "a-huge-claim-costs-nothing", "good practice: Triton dies of 2^31 rows")
def _(s: Server) -> None:
    for shape in ([2**31, 4], [2**63 - 1, 1], [2**40] * 4, [2**62, 2**62], [1] * 33, [2**31, 0, 2**31]):
        answer = s.infer("identity", json_tensor("t", "FP32", shape, [1.0] * 4))
        assert answer.status == 400, shape
        assert s.alive()


for name, body in {"no-json": b"{", "empty": b"", "no-inputs": b"{}", "good": orjson.dumps(GOOD)}.items():
    for path in ("nobody", "versioned/versions/9"):

        @case(
            TABLE, f"unknown-model-before-a-{name}-body-{path}", "RFC 9110, 15.5.5: the target comes before its content"
        )
        def _(s: Server, path: str = path, body: bytes = body) -> None:
            answer = s.ask("POST", f"/v2/models/{path}/infer", body)
            assert answer.status == 404
            assert path.partition("/")[0] in answer.error


@ids(TABLE)
def test_what_is_refused(server: Server, one: Case):
    one.run(server)
