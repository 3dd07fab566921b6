"""Outcomes that come late."""

from __future__ import annotations

from serinus.canary.labels import LabelJoiner
from serinus.canary.looks import Rate


def test_predictions_count_when_their_outcome_has_come_in_either_order():
    joiner = LabelJoiner()
    joiner.predict("a", "stable", "fraud")
    joiner.predict("b", "canary", "fraud")
    assert joiner.rate("stable") == joiner.rate("canary") == Rate(0, 0)
    assert joiner.waiting == 2
    joiner.observe("b", "fraud")
    joiner.observe("c", "genuine")
    joiner.predict("c", "canary", "fraud")
    joiner.observe("a", "genuine")
    assert joiner.rate("canary") == Rate(2, 1)
    assert joiner.rate("stable") == Rate(1, 0)
    assert joiner.waiting == 0


def test_repetitions_count_once():
    joiner = LabelJoiner()
    for _ in range(2):
        joiner.predict("a", "canary", 1)
    for _ in range(2):
        joiner.observe("a", 1)
    joiner.predict("a", "stable", 1)
    joiner.observe("early", 1)
    joiner.observe("early", 0)
    assert joiner.rate("canary") == Rate(1, 1)
    assert joiner.rate("stable") == Rate(0, 0)
    assert (joiner.unjoined.repeated_predictions, joiner.unjoined.repeated_outcomes) == (2, 2)


def test_the_oldest_are_forgotten_where_too_many_wait():
    joiner = LabelJoiner(most_waiting=2)
    for key in range(3):
        joiner.predict(key, "stable", 1)
    joiner.observe(0, 1)
    joiner.observe(2, 1)
    assert joiner.rate("stable") == Rate(1, 1)
    assert joiner.unjoined.forgotten == 1
