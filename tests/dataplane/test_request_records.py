"""What is known of a request at its end, by its own record and as spans, and which ids the log has of it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from serinus import Call, InferRequest
from serinus.dataplane.batching.pending_request import DONE, RUNNING, Batch, BatchKey, PendingRequest
from serinus.dataplane.telemetry.request_records import (
    JoinedHeaders,
    RequestRecord,
    RequestRecorder,
    error_ids,
    join_headers,
    new_request_id,
    record_of,
)
from serinus.errors import InvalidInput
from serinus.tracing.spans import Span
from serinus.tracing.trace_context import TraceContext
from serinus.tracing.tracer import Tracer

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LONGEST_ID = 200
MOST_LINKS = 128


class Collector(Tracer):
    """Keeps the spans instead of sending them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def emit(self, span: Span) -> None:
        self.spans.append(span)

    def told(self) -> list[tuple[str, float, float, str]]:
        return [(span.name, span.start_s, span.end_s, span.error) for span in self.spans]


class Recorded(dict[str, str]):
    """Headers that carry a record, as those of a transport do."""

    def __init__(self, record: RequestRecord, **headers: str) -> None:
        super().__init__(headers)
        self.record = record


def context(number: int, *, sampled: bool = True) -> TraceContext:
    return TraceContext(f"{number:032x}", f"{number:016x}", sampled)


def record_in(number: int, *, sampled: bool = True) -> RequestRecord:
    return RequestRecord(f"id {number}", None, context(number, sampled=sampled))


def pending_of(headers: Mapping[str, str], *, rows: int = 1, arrived: float = 10.0) -> PendingRequest:
    request = InferRequest("m", (), headers=headers)
    arrays = (np.ones(rows),)
    return PendingRequest(request, lambda _: None, arrived, None, None, BatchKey(None, ("x",), Call()), arrays, rows, 0)


def batch_of(*members: PendingRequest, infer_from: float = 12.0, infer_to: float = 13.0) -> Batch:
    batch = Batch(list(members), sum(one.rows for one in members), 11.0)
    batch.infer_from, batch.infer_to = infer_from, infer_to
    for one in members:
        one.state, one.batch = RUNNING, batch
    return batch


def times(record: RequestRecord) -> tuple[float, ...]:
    return (record.arrived, record.started, record.infer_from, record.infer_to, record.answered)


# Records


def test_a_record_that_the_data_plane_has_told_nothing_has_when_it_came_and_is_empty():
    before = time.monotonic()
    record = RequestRecord("id")
    assert before <= record.came <= time.monotonic()
    assert (record.model, record.version, record.rows, record.batch_rows, record.batch_requests) == ("", "", 0, 0, 0)
    assert times(record) == (0, 0, 0, 0, 0)
    assert record.work is None
    assert not record.was_predicted
    assert record.trace_id == ""


@pytest.mark.parametrize(
    ("parent", "own", "expected"),
    [(None, None, 0), (1, None, 1), (None, 2, 2), (1, 2, 2)],
    ids=["none", "the client's", "its own", "both"],
)
def test_the_trace_is_the_servers_own_or_else_the_clients(parent: int | None, own: int | None, expected: int):
    above = None if parent is None else context(parent)
    ours = None if own is None else context(own)
    assert RequestRecord("id", above, ours).trace_id == (f"{expected:032x}" if expected else "")


@pytest.mark.parametrize("sampled", [True, False])
def test_the_predict_has_a_span_of_its_own_in_the_servers_trace(sampled: bool):
    record = record_in(7, sampled=sampled)
    assert record.work is not None
    assert (record.work.trace_id, record.work.sampled) == (f"{7:032x}", sampled)
    assert record.work.span_id != f"{7:016x}"


def test_a_request_that_was_predicted_has_its_times_and_its_batch():
    record = record_in(1)
    mine = pending_of(Recorded(record), rows=2)
    record.note(mine, batch_of(mine, pending_of({}, rows=3)), 14.0)
    assert times(record) == (10, 11, 12, 13, 14)
    assert (record.rows, record.batch_rows, record.batch_requests) == (2, 5, 2)
    assert record.was_predicted


def test_a_request_that_never_left_the_queue_has_waited_until_its_end():
    record = record_in(1)
    record.note(pending_of(Recorded(record), rows=2), None, 14.0)
    assert times(record) == (10, 14, 0, 0, 14)
    assert (record.rows, record.batch_rows, record.batch_requests) == (2, 0, 0)
    assert not record.was_predicted


@pytest.mark.parametrize(("infer_to", "told"), [(0.0, 14.0), (12.0, 14.0), (12.5, 12.5)])
def test_a_predict_that_has_not_ended_lasts_until_the_answer(infer_to: float, told: float):
    record, collector = record_in(1), Collector()
    mine = pending_of(Recorded(record))
    RequestRecorder(collector).answered("m", "", batch_of(mine, infer_to=infer_to), 14.0)
    assert record.infer_to == told
    assert collector.told()[-1] == ("predict m", 12.0, told, "")


def test_headers_carry_a_record_or_none():
    record = record_in(1)
    assert record_of(Recorded(record)) is record
    assert record_of({"record": "text"}) is None


# Who is told of


def test_of_a_batch_those_that_are_done_were_told_of_before():
    records = [record_in(number) for number in range(3)]
    members = [pending_of(Recorded(record)) for record in records]
    batch = batch_of(*members)
    members[1].state = DONE
    RequestRecorder(None).answered("m", "2", batch, 14.0)
    assert [(record.model, record.version, record.answered) for record in records] == [
        ("m", "2", 14.0),
        ("", "", 0.0),
        ("m", "2", 14.0),
    ]


def test_a_failure_is_told_with_its_batch_where_it_had_one():
    waited, ran = record_in(1), record_in(2)
    recorder = RequestRecorder(None)
    recorder.failed("m", "", pending_of(Recorded(waited)), InvalidInput("bad"), 14.0)
    member = pending_of(Recorded(ran))
    batch_of(member)
    recorder.failed("m", "", member, InvalidInput("bad"), 14.0)
    assert (waited.was_predicted, ran.was_predicted) == (False, True)


# Spans


def test_a_request_has_spans_of_its_wait_its_batch_and_its_predict_each_within_the_other():
    record, collector = record_in(1), Collector()
    RequestRecorder(collector).answered("m", "2", batch_of(pending_of(Recorded(record), rows=4)), 14.0)
    assert collector.told() == [
        ("queue m", 10.0, 11.0, ""),
        ("batch m", 11.0, 14.0, ""),
        ("predict m", 12.0, 13.0, ""),
    ]
    queue, batch, predict = collector.spans
    assert (queue.parent, batch.parent, predict.parent) == (record.context, record.context, batch.context)
    assert predict.context == record.work
    assert {span.context.trace_id for span in collector.spans} == {f"{1:032x}"}
    assert len({span.context.span_id for span in collector.spans}) == 3
    assert all(span.context.sampled and span.kind == "internal" for span in collector.spans)
    named = {"serinus.model.name": "m", "serinus.model.version": "2"}
    assert queue.attributes == predict.attributes == named
    sizes = {"serinus.rows": 4, "serinus.batch.rows": 4, "serinus.batch.requests": 1}
    assert batch.attributes == {**named, **sizes}
    assert not queue.links
    assert not batch.links
    assert not predict.links


def test_a_model_without_a_version_has_none_in_its_spans():
    collector = Collector()
    RequestRecorder(collector).answered("m", "", batch_of(pending_of(Recorded(record_in(1)))), 14.0)
    assert [span.attributes.get("serinus.model.version") for span in collector.spans] == [None] * 3


def test_what_failed_before_its_batch_has_a_wait_that_failed_and_nothing_else():
    collector = Collector()
    RequestRecorder(collector).failed("m", "", pending_of(Recorded(record_in(1))), InvalidInput("bad"), 14.0)
    assert collector.told() == [("queue m", 10.0, 14.0, "bad")]


def test_what_failed_in_its_batch_has_waited_well():
    collector = Collector()
    member = pending_of(Recorded(record_in(1)))
    batch_of(member)
    RequestRecorder(collector).failed("m", "", member, InvalidInput("bad"), 14.0)
    assert [(name, error) for name, _, _, error in collector.told()] == [
        ("queue m", ""),
        ("batch m", "bad"),
        ("predict m", "bad"),
    ]


@pytest.mark.parametrize(
    ("headers", "parents"),
    [
        ({}, []),
        ({"traceparent": "nonsense"}, []),
        ({"traceparent": context(3).header()}, [context(3)]),
        ({"traceparent": context(3, sampled=False).header()}, []),
        (Recorded(record_in(4)), [context(4)]),
        (Recorded(record_in(4), traceparent=context(3).header()), [context(4)]),
        (Recorded(record_in(4, sampled=False)), []),
        (Recorded(RequestRecord("id")), []),
    ],
    ids=["none", "wrong", "a model's", "a model's, not sampled", "own", "own first", "not sampled", "not traced"],
)
def test_spans_are_those_of_the_record_or_of_the_traceparent_where_it_is_sampled(
    headers: Mapping[str, str], parents: list[TraceContext]
):
    collector = Collector()
    RequestRecorder(collector).answered("m", "", batch_of(pending_of(headers)), 14.0)
    assert [span.parent for span in collector.spans if span.name == "queue m"] == parents


def test_a_request_that_was_made_of_several_has_spans_in_the_trace_of_each():
    records = [record_in(1), record_in(2, sampled=False), record_in(3)]
    headers = join_headers([InferRequest("m", (), headers=Recorded(record)) for record in records])
    assert isinstance(headers, JoinedHeaders)
    collector = Collector()
    RequestRecorder(collector).answered("m", "", batch_of(pending_of(headers)), 14.0)
    queues = [span.parent for span in collector.spans if span.name == "queue m"]
    assert queues == [records[0].work, records[2].work]
    assert not {span.context for span in collector.spans} & {record.work for record in records}, "each of its own"


def test_requests_of_which_none_is_traced_are_joined_without_headers():
    assert join_headers([InferRequest("m", ()), InferRequest("m", (), headers=Recorded(RequestRecord("id")))]) == {}
    assert not isinstance(join_headers([]), JoinedHeaders)


# Links


def links_of(others: Sequence[Mapping[str, str]]) -> list[Any]:
    collector = Collector()
    mine = pending_of(Recorded(record_in(1)))
    batch_of(*map(pending_of, others), mine)
    RequestRecorder(collector).failed("m", "", mine, InvalidInput("bad"), 14.0)
    queue, batch, predict = collector.spans
    assert not queue.links
    assert not predict.links
    return list(batch.links)


def test_a_batch_is_linked_with_the_sampled_server_spans_of_the_others_in_it():
    others = [Recorded(record_in(2)), {}, Recorded(RequestRecord("id")), Recorded(record_in(3, sampled=False))]
    assert links_of([*others, Recorded(record_in(4))]) == [context(2), context(4)]


@pytest.mark.parametrize(("count", "linked"), [(1, 1), (MOST_LINKS, MOST_LINKS), (MOST_LINKS + 1, MOST_LINKS)])
def test_it_has_as_many_links_as_OpenTelemetry_keeps(count: int, linked: int):
    found = links_of([Recorded(record_in(number + 10)) for number in range(count)])
    assert found == [context(number + 10) for number in range(linked)]


# Ids for the log


@pytest.mark.parametrize(
    ("headers", "request_id", "trace"),
    [
        ({"x-request-id": "mine"}, "mine", 0),
        ({"x-request-id": "mine", "traceparent": context(3).header()}, "mine", 3),
        ({"x-request-id": "i" * (LONGEST_ID + 1)}, "i" * LONGEST_ID, 0),
        ({"x-request-id": "i" * LONGEST_ID}, "i" * LONGEST_ID, 0),
        (Recorded(RequestRecord("mine"), **{"x-request-id": "other"}), "mine", 0),
        (Recorded(RequestRecord("i" * (LONGEST_ID + 1), context(3))), "i" * LONGEST_ID, 3),
    ],
    ids=["sent", "sent and traced", "too long", "as long as may be", "recorded", "recorded and traced"],
)
def test_the_log_has_the_id_that_the_request_has_and_that_of_its_trace(
    headers: Mapping[str, str], request_id: str, trace: int
):
    expected = {"request_id": request_id} | ({"trace_id": f"{trace:032x}"} if trace else {})
    assert error_ids(headers) == expected


def test_a_request_without_an_id_gets_one_for_the_log():
    found = [error_ids({"x-request-id": ""})["request_id"], error_ids({})["request_id"], new_request_id()]
    assert all(UUID.fullmatch(each) for each in found)
    assert len(set(found)) == 3
