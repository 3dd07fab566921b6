"""Rare events are on the page from the start, add up, and have each label that their family has."""

from __future__ import annotations

import pytest

from serinus.dataplane.telemetry.events import EVENTS, Events

HANGS, HELD = "serinus_model_hangs_total", "serinus_loop_held_total"


def told(events: Events) -> dict[str, list[tuple[dict[str, str], float]]]:
    return {family.name: list(family.samples) for family in events.families()}


def test_a_family_without_labels_is_there_at_0_and_one_with_them_when_it_is_expected():
    events = Events()
    assert told(events) == {name: [({}, 0.0)] for name, (_, labels) in EVENTS.items() if not labels}
    events.expect(HANGS, "m", "2")
    assert told(events)[HANGS] == [({"model": "m", "version": "2"}, 0.0)]


def test_what_is_counted_adds_up_by_its_labels_and_is_expected_without_a_change():
    events = Events()
    events.count(HANGS, "m", "2")
    events.count(HANGS, "m", "2", amount=3)
    events.count(HANGS, "m", "3", amount=0.5)
    events.expect(HANGS, "m", "2")
    events.count(HELD)
    assert told(events)[HANGS] == [({"model": "m", "version": "2"}, 4.0), ({"model": "m", "version": "3"}, 0.5)]
    assert told(events)[HELD] == [({}, 1.0)]
    assert {family.kind for family in events.families()} == {"counter"}
    assert {family.name: family.help for family in events.families()}[HELD] == EVENTS[HELD][0]


@pytest.mark.parametrize("labels", [(), ("m",), ("m", "2", "more")])
def test_labels_that_are_not_a_familys_are_an_error_of_whoever_counts(labels: tuple[str, ...]):
    events = Events()
    events.count(HANGS, *labels)
    with pytest.raises(ValueError, match="zip"):
        told(events)
