"""From a batch's outputs to each request's own: rows cut, outputs chosen in order, classes by row or by tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serinus import Call, InferRequest, RequestedOutput, Tensor, TensorSpec
from serinus.dataplane.batching.pending_request import BatchKey, PendingRequest
from serinus.dataplane.servables.response_rows import cut_rows, select_outputs
from serinus.dataplane.telemetry.statistics import ROW_BUCKETS
from serinus.errors import InvalidInput
from serinus.settings import BatchSettings


def members(*rows: int) -> list[PendingRequest]:
    key = BatchKey(None, (), Call())
    return [PendingRequest(InferRequest("m", ()), lambda _: None, 0.0, None, None, key, (), n, 0) for n in rows]


MATRIX = np.arange(24).reshape(4, 3, 2)
COLUMN = np.arange(4.0)


def test_each_request_gets_its_rows_of_every_output_with_what_follows_the_rows():
    parts = cut_rows(members(1, 2, 1), [("a", "INT64", MATRIX, None), ("b", "FP64", COLUMN, None)])
    assert [[(t.name, t.datatype, t.shape) for t in part] for part in parts] == [
        [("a", "INT64", (1, 3, 2)), ("b", "FP64", (1,))],
        [("a", "INT64", (2, 3, 2)), ("b", "FP64", (2,))],
        [("a", "INT64", (1, 3, 2)), ("b", "FP64", (1,))],
    ]
    for part, rows in zip(parts, (slice(0, 1), slice(1, 3), slice(3, 4)), strict=True):
        assert part[0].data.tolist() == MATRIX[rows].tolist()
        assert part[1].data.tolist() == COLUMN[rows].tolist()
        assert all(tensor.data.shape == tensor.shape for tensor in part)
    assert np.shares_memory(parts[1][0].data, MATRIX), "nothing is copied"


def test_a_request_of_no_rows_gets_none_and_takes_none_away():
    first, empty, last = cut_rows(members(2, 0, 2), [("a", "INT64", MATRIX, None)])
    assert [part[0].data.shape[0] for part in (first, empty, last)] == [2, 0, 2]
    assert last[0].data.tolist() == MATRIX[2:].tolist()


def test_a_request_that_is_alone_gets_the_outputs_whole_whatever_their_rows_are():
    outputs = [("a", "INT64", MATRIX, None), ("s", "FP64", np.array(5.0), None)]
    ((whole, scalar),) = cut_rows(members(1), outputs)
    assert (whole.shape, scalar.shape) == ((4, 3, 2), ())
    assert whole.data is MATRIX


def select(tensors: list[Tensor], *outputs: RequestedOutput, by_row: bool = True, **options: Any) -> list[Tensor]:
    specs = {"y": TensorSpec("y", "FP32", (-1, 2), labels=("low", "high"))}
    return select_outputs(tensors, InferRequest("m", (), outputs=outputs), specs, by_row, **options)


Y = Tensor.of("y", np.array([[0.25, 0.75], [0.5, 0.25]], np.float32))
Z = Tensor.of("z", np.array([3.0, 1.0, 2.0], np.float32))
T = Tensor.of("t", np.array([b"text"], object))


def test_outputs_come_in_the_order_of_the_request_and_as_they_are():
    found = select([Y, Z, T], RequestedOutput("t"), RequestedOutput("y"), RequestedOutput("y", {"classification": 0}))
    assert found == [T, Y, Y]
    assert select([Y, Z]) == []


def test_classes_have_the_labels_of_their_output_where_it_has_any():
    labelled, bare = select(
        [Y, Z], RequestedOutput("y", {"classification": 1}), RequestedOutput("z", {"classification": 1})
    )
    assert labelled.data.tolist() == [[b"0.75:1:high"], [b"0.5:0:low"]]
    assert bare.data.tolist() == [[b"3.0:0"], [b"1.0:0"], [b"2.0:0"]], "one value a row is one class a row"


def test_a_tensor_of_one_dimension_is_one_row_of_classes_where_rows_are_not_cut():
    (whole,) = select([Z], RequestedOutput("z", {"classification": 2}), by_row=False)
    assert whole.data.tolist() == [b"3.0:0", b"2.0:2"]


@pytest.mark.parametrize("by_row", [True, False])
def test_a_scalar_is_one_class(by_row: bool):
    (one,) = select(
        [Tensor.of("s", np.array(2.0, np.float32))], RequestedOutput("s", {"classification": 3}), by_row=by_row
    )
    assert one.data.tolist() == [b"2.0:0"]


def test_text_that_is_classes_already_is_passed_on_and_other_text_refused():
    wanted = RequestedOutput("t", {"classification": 1})
    assert select([T], wanted, texts_are_classes=True) == [T]
    with pytest.raises(InvalidInput, match="'classification' wants numbers, the output is BYTES"):
        select([T], wanted)
    (numbers,) = select([Z], RequestedOutput("z", {"classification": 1}), texts_are_classes=True, by_row=False)
    assert numbers.data.tolist() == [b"3.0:0"]


@pytest.mark.parametrize("count", [-1, 1.0, "1", True])
def test_a_number_of_classes_that_is_none_is_refused_with_the_outputs_name(count: Any):
    with pytest.raises(InvalidInput, match="output 'y': 'classification' is "):
        select([Y], RequestedOutput("y", {"classification": count}))


def test_batches_are_counted_by_powers_of_two_up_to_the_largest_that_is_made_by_default():
    assert list(ROW_BUCKETS) == [2.0**n for n in range(13)]
    assert ROW_BUCKETS[-1] == BatchSettings().max_batch_rows
