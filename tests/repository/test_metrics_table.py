"""METRICS.md lists every metric that a server exports, as it exports it."""

from __future__ import annotations

import re

import pytest

from metrics_table import BEGIN, END, PAGE, make_table


@pytest.mark.slow
def test_the_table_of_all_metrics_is_what_a_server_exports():
    written = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert written == make_table(), "make metrics-table writes it again"


def test_the_contract_of_canaries_is_in_the_table():
    contract, _, table = PAGE.read_text().partition("## Every metric")
    assert set(re.findall(r"`(serinus_\w+_(?:total|seconds)|serinus_score)\b", contract)) <= set(
        re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    )
