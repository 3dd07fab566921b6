"""Who is let into a queue, and for how long one refusal is told to all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from serinus.dataplane.batching.adaptive_limit import AdaptiveLimit
from serinus.dataplane.batching.admission import Admission
from serinus.dataplane.batching.pending_request import BatchKey, PendingRequest
from serinus.errors import Overloaded
from serinus.model import Call
from serinus.protocol.types import InferRequest


@dataclass
class Counts:
    """What waits and what runs."""

    queued: int = 0
    queued_rows: int = 0
    running_rows: int = 0
    present_bytes: int = 0
    is_running: bool = True

    def retry_after_s(self) -> float:
        return 3.0


def admission(
    counts: Counts, *, rows: int = 10, size: int = 100, levels: int = 1, limit: AdaptiveLimit | None = None
) -> Admission:
    limit = limit or AdaptiveLimit("joined", is_fixed=True)
    return Admission(counts, limit, most_rows=rows, most_bytes=size, shares=[1.0] * levels)


def pending(rows: int = 1, size: int = 1, now: float = 5.0, deadline: float | None = None) -> PendingRequest:
    made = PendingRequest(
        InferRequest("m", ()), lambda *_: None, now, deadline, None, BatchKey((), (), Call()), (), rows, 0, size=size
    )
    made.ahead = rows
    return made


@pytest.mark.parametrize(
    ("counts", "asked", "says"),
    [
        (Counts(queued=2, queued_rows=9), {"rows": 1}, None),
        (Counts(queued=2, queued_rows=9), {"rows": 2}, "the queue is full: 9 rows wait, 2 more would pass the limit of 10"),
        (Counts(queued=9, queued_rows=0), {"rows": 1}, None),
        (Counts(queued=10, queued_rows=0), {"rows": 1}, "the queue is full: 0 rows wait, 1 more would pass the limit of 10"),
        (Counts(is_running=False), {"rows": 50, "size": 500}, None),
        (Counts(queued=1, queued_rows=1, is_running=False, present_bytes=60), {"size": 40}, None),
        (Counts(queued=1, queued_rows=1, is_running=False, present_bytes=60), {"size": 41}, "60 bytes wait or run, 41 more would pass the limit of 100"),
        (Counts(present_bytes=60), {"size": 41}, "60 bytes wait or run, 41 more would pass the limit of 100"),
    ],
)  # fmt: skip
def test_a_request_is_let_in_up_to_the_bounds_and_alone_whatever_it_is(
    counts: Counts, asked: dict[str, Any], says: str | None
):
    reason = admission(counts).reason_to_refuse(pending(**asked))
    assert (reason is None) if says is None else (says in str(reason))


def measured() -> AdaptiveLimit:
    """The limit of a model that takes a second a row."""
    limit = AdaptiveLimit("alone")
    limit.expect(1.0, 1.0)
    limit.drained_at = limit.progress_at = 5.0
    return limit


def test_rows_before_a_request_keep_it_out_where_they_would_keep_it_waiting():
    limit = measured()
    few, many = Counts(queued=1, queued_rows=1), Counts(queued=500, queued_rows=500, running_rows=3)
    assert admission(few, rows=1000, limit=limit).reason_to_refuse(pending(now=6.0)) is None
    assert limit.drained_at == 6.0, "a short queue counts as drained"
    reason = admission(many, rows=1000, limit=limit).reason_to_refuse(pending(now=6.0))
    assert "the model is overloaded: 503 rows are before this request" in str(reason)
    assert "waiting for 5e+02 s" in str(reason)


def test_a_deadline_that_cannot_be_met_is_told_with_both_times_and_one_that_can_or_of_a_lone_request_is_none():
    door = admission(Counts(queued=4, queued_rows=4), limit=measured())
    late = pending(now=6.0, deadline=8.0)
    door.check_deadline(late)  # nobody is before it
    late.ahead = 5
    with pytest.raises(
        Overloaded, match=r"answered in about 5 s, and it has 2 s; come back in 3 s or send to more replicas"
    ) as refused:
        door.check_deadline(late)
    assert refused.value.retry_after_s == 3.0
    good = pending(now=6.0, deadline=60.0)
    good.ahead = 5
    door.check_deadline(good)


FULL = [Counts(queued=2, queued_rows=10), Counts(queued=10, queued_rows=3)]


@pytest.mark.parametrize("counts", FULL, ids=["rows", "requests"])
def test_a_refusal_of_a_full_queue_is_told_again_for_a_tenth_of_a_second(counts: Counts):
    door = admission(counts)
    assert door.refusal_now(0.05) is None, "nobody was refused yet"
    error = door.refuse_at(5.0, "the queue is full")
    assert str(error) == "the queue is full; come back in 3 s or send to more replicas"
    assert door.refusal_now(5.05) is error
    assert door.refusal_now(5.1 - 1e-9) is error
    assert door.refusal_now(5.11) is None
    assert door.refusal_now(5.0) is None, "it was forgotten"


@pytest.mark.parametrize("counts", FULL, ids=["rows", "requests"])
def test_it_is_forgotten_as_soon_as_there_is_room(counts: Counts):
    counts = Counts(counts.queued, counts.queued_rows)
    door = admission(counts)
    error = door.refuse_at(5.0, "full")
    assert door.refusal_now(5.01) is error
    counts.queued, counts.queued_rows = counts.queued - 1, counts.queued_rows - 1
    assert door.refusal_now(5.02) is None
    counts.queued, counts.queued_rows = counts.queued + 1, counts.queued_rows + 1
    assert door.refusal_now(5.02) is None


def test_what_one_is_refused_for_by_itself_is_told_to_no_other():
    """A request of many rows, or one behind others of its own level, says nothing of the next one."""
    for counts, levels in (
        (Counts(queued=2, queued_rows=9), 1),
        (Counts(queued=2, queued_rows=10), 2),
        (Counts(is_running=False), 1),
    ):
        door = admission(counts, levels=levels)
        door.refuse_at(5.0, "too many rows")
        assert door.refusal is None
        assert door.refusal_now(5.0) is None


def test_rows_that_run_alone_can_be_too_many_for_all():
    limit = measured()
    many = Counts(running_rows=500)
    door = admission(many, rows=1000, limit=limit)
    error = door.refuse_at(6.0, "overloaded")
    assert door.refusal_now(6.0) is error
    many.running_rows = 1
    assert door.refusal_now(6.0) is None
    idle = Counts(running_rows=500, is_running=False)
    door = admission(idle, rows=1000, limit=limit)
    door.refuse_at(6.0, "overloaded")
    assert door.refusal_now(6.0) is None, "nothing waits or runs"
