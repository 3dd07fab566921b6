"""The batcher in simulated time: what is predicted together, when, and who is told what."""

from __future__ import annotations

import asyncio
import random

import pytest

from dataplane_support import Queue, SimulatedExecutor
from representative import every
from serinus.errors import NotReady, Overloaded

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


async def test_an_idle_server_adds_no_delay():
    queue = Queue(SimulatedExecutor())
    queue.submit("a")
    await queue.settled()
    assert queue.executor.started == [0]
    assert queue.told["a"] == (1.0, "answered")


async def test_requests_of_one_turn_of_the_loop_are_one_batch():
    queue = Queue(SimulatedExecutor())
    for label in "abc":
        queue.submit(label)
    await queue.settled()
    assert queue.executor.batches == [["a", "b", "c"]]


async def test_what_arrives_while_a_batch_runs_is_the_next_batch():
    queue = Queue(SimulatedExecutor())
    queue.submit("a")
    await asyncio.sleep(0.25)
    queue.submit("b")
    await asyncio.sleep(0.5)
    queue.submit("c")
    await queue.settled()
    assert queue.executor.batches == [["a"], ["b", "c"]]
    assert queue.executor.started == [0, 1]


async def test_each_free_place_takes_a_batch():
    queue = Queue(SimulatedExecutor(capacity=2), max_batch_rows=2)
    for label in "abcde":
        queue.submit(label)
    await queue.settled()
    assert queue.executor.batches == [["a", "b"], ["c", "d"], ["e"]]
    assert queue.executor.started == [0, 0, 1]


async def test_a_batch_holds_no_more_rows_than_allowed_and_a_larger_request_goes_alone():
    queue = Queue(SimulatedExecutor(), max_batch_rows=4)
    for label, rows in (("a", 2), ("b", 2), ("c", 1), ("big", 9), ("d", 3), ("e", 2)):
        queue.submit(label, rows=rows)
    await queue.settled()
    assert queue.executor.batches == [["a", "b"], ["c"], ["big"], ["d"], ["e"]]


async def test_a_request_of_no_rows_goes_alone():
    queue = Queue(SimulatedExecutor())
    for label, rows in (("a", 1), ("none", 0), ("b", 1)):
        queue.submit(label, rows=rows)
    await queue.settled()
    assert queue.executor.batches == [["a"], ["none"], ["b"]]


async def test_a_model_that_is_not_batchable_gets_one_request_at_a_time():
    queue = Queue(SimulatedExecutor(capacity=2), solo=True)
    for label in "abc":
        queue.submit(label)
    await queue.settled()
    assert queue.executor.batches == [["a"], ["b"], ["c"]]
    assert queue.executor.started == [0, 0, 1]


async def test_with_a_delay_a_free_place_waits_for_more_rows():
    queue = Queue(SimulatedExecutor(), max_delay_s=0.5)
    queue.submit("a")
    await asyncio.sleep(0.3)
    queue.submit("b")
    await queue.settled()
    assert queue.executor.batches == [["a", "b"]]
    assert queue.executor.started == [0.5]


async def test_with_a_delay_a_full_batch_goes_at_once_and_the_rest_does_not_wait_again():
    queue = Queue(SimulatedExecutor(call_s=0.1), max_delay_s=10, max_batch_rows=2)
    queue.submit("a")
    await asyncio.sleep(0.3)
    queue.submit("b")
    queue.submit("c")
    await queue.settled()
    assert queue.executor.batches == [["a", "b"], ["c"]]
    assert queue.executor.started == pytest.approx([0.3, 0.4])


async def test_the_delay_takes_at_most_half_the_time_to_a_deadline():
    queue = Queue(SimulatedExecutor(call_s=0.1), max_delay_s=10)
    queue.submit("a", timeout_s=1)
    await queue.settled()
    assert queue.told["a"] == (0.6, "answered")


async def test_a_delay_that_was_cancelled_does_not_hurry_the_next_request():
    queue = Queue(SimulatedExecutor(), max_delay_s=1)
    queue.submit("a").cancel()
    await asyncio.sleep(5)
    queue.submit("b")
    await queue.settled()
    assert queue.executor.started == [6]


async def test_a_full_queue_refuses_with_the_time_that_the_queue_will_take():
    queue = Queue(SimulatedExecutor(call_s=0, row_s=0.5), max_queue_rows=10, max_batch_rows=1)
    queue.submit("measured")
    await queue.settled()
    queue.submit("runs")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for label in range(10):
        queue.submit(label)
    with pytest.raises(Overloaded, match=r"10 rows wait.*limit of 10") as refused:
        queue.submit("refused")
    assert refused.value.retry_after_s == pytest.approx(5.0)
    await queue.settled()
    assert "refused" not in queue.told
    assert len(queue.told) == 12


async def test_a_request_larger_than_the_whole_queue_is_served_when_the_queue_is_empty():
    queue = Queue(SimulatedExecutor(), max_queue_rows=10)
    queue.submit("giant", rows=100)
    await queue.settled()
    assert queue.told["giant"][1] == "answered"


async def test_requests_without_rows_cannot_fill_the_queue_beyond_its_bound():
    queue = Queue(SimulatedExecutor(), max_queue_rows=3)
    for label in "abc":
        queue.submit(label, rows=0)
    with pytest.raises(Overloaded):
        queue.submit("d", rows=0)
    await queue.settled()


async def test_a_request_past_its_deadline_leaves_the_queue_at_its_deadline_and_is_not_predicted():
    queue = Queue(SimulatedExecutor(call_s=2))
    queue.submit("a")
    await asyncio.sleep(0.1)
    queue.submit("b", timeout_s=0.5)
    queue.submit("c", timeout_s=5)
    await queue.settled()
    assert queue.told["b"] == (0.6, "TimedOut")
    assert queue.executor.batches == [["a"], ["c"]]


async def test_a_deadline_while_running_is_kept_and_the_neighbours_are_answered():
    queue = Queue(SimulatedExecutor(call_s=1))
    queue.submit("patient", timeout_s=4)
    queue.submit("hasty", timeout_s=0.4)
    queue.submit("free")
    await queue.settled()
    assert queue.executor.batches == [["patient", "hasty", "free"]]
    assert queue.told == {"hasty": (0.4, "TimedOut"), "patient": (1.0, "answered"), "free": (1.0, "answered")}
    assert queue.executor.abandoned == []


async def test_a_deadline_that_passed_before_its_timer_ran_is_noticed_when_the_batch_is_taken():
    queue = Queue(SimulatedExecutor())
    queue.submit("late", timeout_s=0)
    queue.submit("ok")
    await queue.settled()
    assert queue.told == {"late": (0.0, "TimedOut"), "ok": (1.0, "answered")}
    assert queue.executor.batches == [["ok"]]


async def test_a_cancelled_request_that_waits_is_never_predicted():
    queue = Queue(SimulatedExecutor())
    queue.submit("a")
    await asyncio.sleep(0.1)
    pending = queue.submit("b")
    queue.submit("c")
    pending.cancel()
    pending.cancel()
    await queue.settled()
    assert queue.executor.batches == [["a"], ["c"]]
    assert queue.gone == ["b"]
    assert "b" not in queue.told


async def test_a_cancelled_request_that_runs_leaves_its_neighbours_alone():
    queue = Queue(SimulatedExecutor())
    pending = queue.submit("a")
    queue.submit("b")
    await asyncio.sleep(0.5)
    pending.cancel()
    await queue.settled()
    assert queue.told == {"b": (1.0, "answered")}
    assert queue.executor.abandoned == []


async def test_the_executor_is_told_when_nobody_waits_for_a_batch():
    queue = Queue(SimulatedExecutor())
    members = [queue.submit("a"), queue.submit("b")]
    await asyncio.sleep(0.5)
    for pending in members:
        pending.cancel()
    assert queue.executor.abandoned == [["a", "b"]]
    await queue.settled()
    assert queue.told == {}


async def test_higher_priorities_go_first_and_lower_ones_fill_the_room_that_is_left():
    queue = Queue(SimulatedExecutor(), max_batch_rows=2, priority_levels=3)
    for label, level in (("low", 2), ("mid", 1), ("high", 0), ("high2", 0), ("high3", 0)):
        queue.submit(label, level=level)
    await queue.settled()
    assert queue.executor.batches == [["high", "high2"], ["high3", "mid"], ["low"]]


async def test_a_batch_is_of_one_group_and_no_group_starves():
    queue = Queue(SimulatedExecutor(), max_batch_rows=2)
    for number in range(4):
        queue.submit(f"a{number}", key="a")
    queue.submit("b", key="b")
    queue.submit("c", key="c")
    await queue.settled()
    assert queue.executor.batches == [["a0", "a1"], ["b"], ["c"], ["a2", "a3"]]


async def test_only_the_guilty_request_of_a_failed_batch_fails():
    queue = Queue(SimulatedExecutor())
    queue.executor.bad = {"guilty"}
    for label in ("a", "guilty", "b"):
        queue.submit(label)
    await asyncio.sleep(0.5)
    queue.submit("later")
    await queue.settled()
    # "later" was taken before the failed batch was looked at: the executor is never left idle.
    assert queue.executor.batches == [["a", "guilty", "b"], ["later"], ["a"], ["guilty"], ["b"]]
    assert {label: what for label, (_, what) in queue.told.items()} == {
        "a": "answered",
        "guilty": "ValueError",
        "b": "answered",
        "later": "answered",
    }


async def test_a_request_that_fails_alone_is_not_tried_again():
    queue = Queue(SimulatedExecutor())
    queue.executor.bad = {"a"}
    queue.submit("a")
    await queue.settled()
    assert queue.executor.batches == [["a"]]
    assert queue.told == {"a": (1.0, "ValueError")}


async def test_a_retried_request_keeps_its_deadline_and_may_be_cancelled():
    queue = Queue(SimulatedExecutor())
    queue.executor.bad = {"guilty"}
    queue.submit("guilty")
    queue.submit("short", timeout_s=1.5)
    gone = queue.submit("gone")
    await asyncio.sleep(1.2)
    gone.cancel()
    await queue.settled()
    assert queue.told == {"guilty": (2.0, "ValueError"), "short": (1.5, "TimedOut")}
    assert queue.executor.batches == [["guilty", "short", "gone"], ["guilty"]]


async def test_closing_answers_everything_that_waits_or_runs():
    queue = Queue(SimulatedExecutor())
    queue.submit("runs")
    await asyncio.sleep(0.5)
    queue.submit("waits")
    queue.batcher.fail_all(NotReady("stopping"))
    assert queue.told == {"runs": (0.5, "NotReady"), "waits": (0.5, "NotReady")}
    await queue.settled()


async def test_whoever_drains_is_told_when_the_last_request_is_gone():
    queue = Queue(SimulatedExecutor())
    idle_at: list[float] = []
    queue.batcher.on_idle = lambda: idle_at.append(queue.loop.time())
    queue.submit("a")
    await asyncio.sleep(0.5)
    queue.submit("b", timeout_s=0.2)
    await queue.settled()
    assert idle_at == [1.0]


async def test_cancelled_entries_and_past_deadlines_do_not_pile_up():
    queue = Queue(SimulatedExecutor(call_s=1000))
    queue.submit("slow")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for number in range(5000):
        queue.submit(number, timeout_s=500, key=number % 7).cancel()
    waiting = sum(1 for _ in queue.batcher._waiting)
    assert waiting <= 128
    assert len(queue.deadlines) <= 1024
    assert queue.batcher.queued == queue.batcher.queued_rows == 0


@pytest.mark.parametrize("seed", every(4, range(10)))
async def test_every_request_is_told_exactly_once_or_is_gone(seed: int):
    chance = random.Random(seed)
    queue = Queue(
        SimulatedExecutor(capacity=chance.choice([1, 3]), call_s=0.05, row_s=0.01),
        max_batch_rows=chance.choice([1, 8, 64]),
        max_delay_s=chance.choice([0, 0.02]),
        priority_levels=3,
        max_queue_rows=200,
    )
    queue.executor.bad = set(chance.sample(range(400), 20))
    refused, members = set(), []
    for label in range(400):
        timeout_s = chance.choice([None, None, 0.03, 0.3, 3])
        try:
            pending = queue.submit(
                label,
                rows=chance.choice([0, 1, 1, 1, 5, 70]),
                key=chance.choice("ab"),
                level=chance.randrange(3),
                timeout_s=timeout_s,
            )
        except Overloaded:
            refused.add(label)
        else:
            members.append(pending)
        if members and chance.random() < 0.1:
            chance.choice(members).cancel()
        if chance.random() < 0.3:
            await asyncio.sleep(chance.choice([0, 0.01, 0.2]))
    await queue.settled()
    assert not queue.gone or not set(queue.gone) & set(queue.told)
    assert set(queue.told) | set(queue.gone) | refused == set(range(400))
    assert queue.batcher.queued == queue.batcher.queued_rows == queue.batcher.running == 0
    failed = {label for label, (_, what) in queue.told.items() if what == "ValueError"}
    assert failed <= queue.executor.bad
    for batch in queue.executor.batches:
        assert len(batch) == len(set(batch))
