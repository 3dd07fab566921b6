"""The states of a connection: the whole table, and what holds of it as a whole."""

from __future__ import annotations

import ast
import inspect
import sys

import pytest

from serinus.server.http import connection
from serinus.server.http import connection_state as states
from serinus.server.http.connection_state import ImpossibleStep, Reading, Steps, Writing

# Written out a second time, so that no step comes or goes unnoticed: event, state before, state after.
READING = """
message_begin     IDLE         HEAD
message_begin     UPGRADE      HEAD
message_begin     LAST         BROKEN
message_begin     BROKEN       BROKEN
head_complete     HEAD         BODY
head_complete     BROKEN       BROKEN
await_continue    BODY         AWAITED
continue_sent     AWAITED      BODY
upgrade_asked     BODY         UPGRADE
upgrade_asked     BROKEN       BROKEN
message_complete  BODY         IDLE
message_complete  AWAITED      IDLE
message_complete  DISCARD      IDLE
message_complete  UPGRADE      UPGRADE
message_complete  LAST         LAST
message_complete  BROKEN       BROKEN
last_request      IDLE         LAST
last_request      HEAD         LAST
last_request      BODY         LAST
last_request      AWAITED      LAST
last_request      DISCARD      LAST
last_request      LAST         LAST
last_request      BROKEN       BROKEN
last_request      INPUT_ENDED  INPUT_ENDED
last_request      PROBED       PROBED
refused           IDLE         BROKEN
refused           HEAD         BROKEN
refused           BODY         BROKEN
refused           AWAITED      BROKEN
refused           UPGRADE      BROKEN
refused_soundly   BODY         DISCARD
data_after_last   LAST         BROKEN
data_after_last   BROKEN       BROKEN
input_end         IDLE         INPUT_ENDED
input_end         HEAD         INPUT_ENDED
input_end         BODY         INPUT_ENDED
input_end         AWAITED      INPUT_ENDED
input_end         DISCARD      INPUT_ENDED
input_end         LAST         INPUT_ENDED
input_end         BROKEN       INPUT_ENDED
input_end         CLOSED       CLOSED
probe             INPUT_ENDED  PROBED
lost              IDLE         CLOSED
lost              HEAD         CLOSED
lost              BODY         CLOSED
lost              AWAITED      CLOSED
lost              DISCARD      CLOSED
lost              UPGRADE      CLOSED
lost              LAST         CLOSED
lost              BROKEN       CLOSED
lost              INPUT_ENDED  CLOSED
lost              PROBED       CLOSED
"""
WRITING = """
pause_writing     OPEN         FULL
pause_writing     SHUT         SHUTTING
pause_writing     CLOSED       CLOSED
resume_writing    FULL         OPEN
resume_writing    SHUTTING     SHUT
resume_writing    CLOSED       CLOSED
shut_down         OPEN         SHUT
shut_down         FULL         SHUTTING
lost              OPEN         CLOSED
lost              FULL         CLOSED
lost              SHUTTING     CLOSED
lost              SHUT         CLOSED
"""
SIDES = {"reading": (READING, Reading, states.READING_EVENTS), "writing": (WRITING, Writing, states.WRITING_EVENTS)}


def _expected(side: str) -> dict[tuple[str, str], str]:
    rows = [line.split() for line in SIDES[side][0].split("\n") if line]
    return {(event, before): after for event, before, after in rows}


EVERY = [(side, event, state) for side, (_, kind, events) in SIDES.items() for event in events for state in kind]


@pytest.mark.parametrize(
    ("side", "steps", "state"), EVERY, ids=[f"{side}: {steps.event} in {state.name}" for side, steps, state in EVERY]
)
def test_each_event_leads_where_the_table_says_or_is_impossible(side, steps, state, impossible_steps):
    after = _expected(side).get((steps.event, state.name))
    if after is None:
        with pytest.raises(ImpossibleStep, match=f"{steps.event} cannot happen while the {side} side is {state.name}"):
            steps[state]
        assert len(impossible_steps) == 1, "any other test would fail by it"
        impossible_steps.clear()
    else:
        assert steps[state] is type(state)[after]


@pytest.mark.parametrize("side", SIDES)
def test_the_table_names_no_event_or_state_that_is_not_there(side):
    _, kind, events = SIDES[side]
    expected = _expected(side)
    assert {event for event, _ in expected} == {steps.event for steps in events}
    assert {name for row in expected.items() for name in (row[0][1], row[1])} == set(kind.__members__)
    assert len(expected) == sum(map(len, events)), "a step is written twice"


def _reachable(events, first) -> set:
    found, fresh = {first}, [first]
    while fresh:
        state = fresh.pop()
        for steps in events:
            if state in steps and steps[state] not in found:
                found.add(steps[state])
                fresh.append(steps[state])
    return found


@pytest.mark.parametrize("side", SIDES)
def test_every_state_can_be_reached_and_ends_in_closed(side):
    _, kind, events = SIDES[side]
    assert _reachable(events, next(iter(kind))) == set(kind)
    for state in kind:
        assert kind.CLOSED in _reachable(events, state)
    assert _reachable(events, kind.CLOSED) == {kind.CLOSED}


def test_no_request_is_taken_after_the_last():
    for state in Reading:
        if state >= Reading.LAST:
            assert all(after >= Reading.LAST for after in _reachable(states.READING_EVENTS, state))


def test_the_order_of_the_reading_states_is_that_by_which_they_are_compared():
    assert {state.name for state in Reading if state >= Reading.LAST} == {
        "LAST",
        "BROKEN",
        "INPUT_ENDED",
        "PROBED",
        "CLOSED",
    }
    assert {state.name for state in Reading if state >= Reading.INPUT_ENDED} == {"INPUT_ENDED", "PROBED", "CLOSED"}


def test_a_step_calls_no_function_of_python():
    """The connection takes three for each request: the hash of a plain Enum would be a call each."""
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event) if event == "call" else None)
    try:
        states.MESSAGE_BEGIN[states.IDLE]
    finally:
        sys.setprofile(None)
    assert calls == []


def test_a_state_changes_only_by_a_table():
    """No assignment but from a look-up, or of the first state."""
    assigned = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(connection)))
        if isinstance(node, ast.Assign | ast.AnnAssign)
    ]
    written = [
        ast.unparse(node.value)
        for node in assigned
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and target.attr in {"reading", "writing"} and node.value is not None
    ]
    assert written.count("IDLE") == written.count("OPEN") == 1
    assert [text for text in written if text not in {"IDLE", "OPEN"} and not text.endswith("]")] == []
    assert isinstance(states.MESSAGE_BEGIN, Steps)
