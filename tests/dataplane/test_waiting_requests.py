"""Which of the requests that wait are taken next, in which batch, and which are passed over: the table itself, without a batcher."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest

from serinus import Call, InferRequest
from serinus.dataplane.batching.pending_request import DONE, QUEUED, BatchKey, PendingRequest
from serinus.dataplane.batching.waiting_requests import WaitingRequests

NOW = 10.0


class Waiting:
    """A table, and requests by the name that a test gave them."""

    def __init__(self, levels: int = 1) -> None:
        self.table = WaitingRequests(levels)

    def add(
        self, name: str, rows: int = 1, *, level: int = 0, group: str = "g", deadline: float | None = None
    ) -> PendingRequest:
        pending = PendingRequest(
            InferRequest(name, ()),
            lambda _: None,
            0.0,
            deadline,
            None,
            BatchKey(group, ("x",), Call()),
            (np.ones(1),),
            rows,
            level,
        )
        self.table.levels[level].setdefault(group, deque()).append(pending)
        return pending

    def end(self, pending: PendingRequest) -> None:
        pending.state = DONE
        self.table.dead += 1

    def take(self, limit: int = 8, *, solo: bool = False) -> tuple[list[str], list[str]]:
        """Names of the members, and of those that were late."""
        late: list[PendingRequest] = []
        return names(self.table.take(NOW, limit, solo, late)), names(late)


def names(requests: Sequence[PendingRequest]) -> list[str]:
    return [pending.request.model_name for pending in requests]


def test_a_batch_takes_from_the_next_level_when_the_first_has_not_that_group_and_the_third_has():
    waiting = Waiting(3)
    waiting.add("a", level=0, group="g")
    waiting.add("other", level=1, group="h")
    waiting.add("b", level=2, group="g")
    assert waiting.take() == (["a", "b"], [])
    assert waiting.take() == (["other"], [])
    assert waiting.take() == ([], [])


def test_a_level_without_requests_is_passed_over():
    waiting = Waiting(3)
    waiting.add("low", level=2)
    assert waiting.take() == (["low"], [])


def test_a_batch_holds_the_rows_that_fit_and_a_request_of_more_goes_alone():
    waiting = Waiting()
    for name, rows in (("a", 3), ("b", 5), ("c", 1), ("large", 20), ("d", 8)):
        waiting.add(name, rows)
    assert [waiting.take(8)[0] for _ in range(5)] == [["a", "b"], ["c"], ["large"], ["d"], []]


def test_requests_without_rows_go_alone_and_so_does_each_where_batches_are_of_one():
    waiting = Waiting()
    for name, rows in (("a", 1), ("none", 0), ("b", 1)):
        waiting.add(name, rows)
    assert [waiting.take()[0] for _ in range(3)] == [["a"], ["none"], ["b"]]
    waiting.add("c")
    waiting.add("d")
    assert [waiting.take(solo=True)[0] for _ in range(2)] == [["c"], ["d"]]


def test_groups_of_a_level_take_turns():
    waiting = Waiting()
    for name, group in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")):
        waiting.add(name, group=group)
    assert [waiting.take(1)[0] for _ in range(4)] == [["a1"], ["b1"], ["a2"], ["b2"]]


@pytest.mark.parametrize(("deadline", "is_late"), [(None, False), (NOW - 1, True), (NOW, True), (NOW + 0.001, False)])
@pytest.mark.parametrize("alone", [False, True], ids=["queued", "of a failed batch"])
def test_a_deadline_that_has_come_is_late_and_one_that_has_not_is_taken(
    deadline: float | None, is_late: bool, alone: bool
):
    waiting = Waiting()
    pending = waiting.add("a", deadline=deadline)
    if alone:
        waiting.table.levels[0].clear()
        waiting.table.alone.append(pending)
    assert waiting.take() == (([], ["a"]) if is_late else (["a"], []))


def test_what_is_late_or_done_is_passed_over_and_the_batch_goes_on_behind_it():
    waiting = Waiting()
    waiting.add("late", deadline=NOW)
    gone = waiting.add("gone")
    waiting.add("a")
    waiting.end(gone)
    waiting.add("late too", deadline=NOW)
    waiting.add("b")
    assert waiting.take() == (["a", "b"], ["late", "late too"])
    assert waiting.table.dead == 0


def test_requests_of_a_failed_batch_come_first_one_by_one_and_those_that_are_done_are_none():
    waiting = Waiting()
    waiting.add("queued")
    for name in ("x", "y", "z"):
        waiting.table.alone.append(waiting.add(name, group="failed"))
    del waiting.table.levels[0]["failed"]
    waiting.end(waiting.table.alone[1])
    assert [waiting.take()[0] for _ in range(4)] == [["x"], [], ["z"], ["queued"]]
    assert waiting.table.dead == 0


def test_rows_are_counted_in_and_out_of_their_level_and_what_came_above_is_taken_off():
    waiting = Waiting(3)
    requests = [waiting.add(str(level), rows, level=level) for level, rows in ((0, 2), (1, 3), (2, 4))]
    for pending in requests:
        pending.ahead = 100
        waiting.table.count_in(pending)
    assert (waiting.table.rows, waiting.table.added) == ([2, 3, 4], [2, 3, 4])
    assert [pending.ahead for pending in requests] == [100, 98, 95]
    waiting.table.count_out(requests[1:])
    assert (waiting.table.rows, waiting.table.added) == ([2, 0, 0], [2, 3, 4])


def test_the_first_to_be_given_up_is_the_last_that_lives_of_the_lowest_level_below():
    waiting = Waiting(3)
    waiting.add("top", level=0)
    waiting.add("a", level=2, group="g")
    waiting.add("b", level=2, group="h")
    gone = waiting.add("c", level=2, group="h")
    waiting.end(gone)
    found = waiting.table.last_below(0)
    assert found is not None
    assert names([found]) == ["b"]
    assert waiting.table.dead == 0
    waiting.end(found)
    assert names([waiting.table.last_below(1) or found]) == ["a"]
    assert waiting.table.last_below(2) is None


@pytest.mark.parametrize(("dead", "is_swept"), [(64 + 2, False), (64 + 3, True)])
def test_the_dead_are_swept_once_they_are_more_than_the_living_and_a_slack(dead: int, is_swept: bool):
    waiting = Waiting()
    living = [waiting.add("a"), waiting.add("b", group="h")]
    waiting.table.alone.append(waiting.add("gone alone", group="failed"))
    waiting.end(waiting.table.alone[0])
    running = waiting.add("runs alone", group="failed")
    waiting.table.alone.append(running)
    del waiting.table.levels[0]["failed"]
    for number in range(dead - 1):
        waiting.end(waiting.add("gone", group=f"g{number % 3}"))
    waiting.table.sweep(len(living))
    left = names(list(waiting.table))
    if is_swept:
        assert sorted(left) == ["a", "b", "runs alone"]
        assert set(waiting.table.levels[0]) == {"g", "h"}
        assert waiting.table.dead == 0
    else:
        assert left.count("gone") == dead - 1
        assert waiting.table.dead == dead
    assert [pending.state for pending in living] == [QUEUED, QUEUED]
