"""The metrics page as text: every kind of number, label and bucket (Prometheus, exposition formats)."""

from __future__ import annotations

import math

import pytest

from serinus.exposition import Page


def test_a_page_has_a_head_for_each_family_and_a_line_for_each_sample():
    page = Page()
    page.family("a_total", "counter", "Of a.")
    page.sample("a_total", {"x": "1", "y": 'q"\\\n'}, 3)
    page.sample("a_total", {}, 0.5)
    assert page.encode().decode() == (
        '# HELP a_total Of a.\n# TYPE a_total counter\na_total{x="1",y="q\\"\\\\\\n"} 3\na_total 0.5\n'
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (7, "7"),
        (0.1, "0.1"),
        (2.0, "2.0"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
        (1e30, "1e+30"),
    ],
)
def test_a_number_is_written_so_that_it_reads_back(value: float, written: str):
    page = Page()
    page.sample("a", {}, value)
    assert page.encode() == f"a {written}\n".encode()


def test_the_buckets_of_a_histogram_hold_all_below_them():
    page = Page()
    page.histogram("h", {"m": "x"}, (0.5, 1.0), (2, 0, 3), 4.25)
    assert page.encode().decode().splitlines() == [
        'h_bucket{m="x",le="0.5"} 2',
        'h_bucket{m="x",le="1.0"} 2',
        'h_bucket{m="x",le="+Inf"} 5',
        'h_sum{m="x"} 4.25',
        'h_count{m="x"} 5',
    ]


@pytest.mark.parametrize("counts", [(1, 2), (1, 2, 3, 4)])
def test_a_histogram_has_one_count_more_than_bounds(counts: tuple[int, ...]):
    with pytest.raises(ValueError, match="zip"):
        Page().histogram("h", {}, (0.5, 1.0), counts, 1.0)
