"""Business metrics from files that grow, endpoints and a Prometheus; what goes back or is none moves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from canary_pages import pages
from serinus.canary.looks import Arm, Mean, Rate
from serinus.canary.sources.business_metrics import WithBusiness, parse_metric
from serinus.canary.sources.source import ArmNames, Observation
from serinus.errors import ConfigError

NAMES = ArmNames("m-1", "m-2", "m")


class Requests:
    """A source of requests alone."""

    def observe(self, names: ArmNames) -> Observation:
        return Observation(Arm(requests=5), Arm(requests=1))


def source(text: str, now: float = 1000.0) -> WithBusiness:
    return WithBusiness(Requests(), [parse_metric(text, clock=lambda: now)])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_counts_outcomes_by_revision_from_the_rollouts_beginning(tmp_path: Path, suffix: str):
    path = tmp_path / f"clicks.{suffix}"

    def line(revision: str, value: str, time: float) -> str:
        if suffix == "csv":
            return f'{time},"{revision}",{value}\n'
        return json.dumps({"revision": revision, "value": json.loads(value), "time": time}) + "\n"

    path.write_text("time,revision,value\n" if suffix == "csv" else "")
    with path.open("a") as file:
        file.write(line("m-1", "1", 999.0) + line("m-1", "0", 1001.0) + line("m-9", "1", 1001.0))
    watched = source(f"clicks=rate:{path}")
    assert watched.observe(NAMES).stable.rates == {"clicks": Rate(1, 0)}
    with path.open("a") as file:
        file.write(line("m-2", "true", 1002.0) + line("m-1", "1", 1003.0) + line("m-2", "0", 1003.0)[:-4])
    observed = watched.observe(NAMES)
    assert (observed.stable.rates["clicks"], observed.canary.rates["clicks"]) == (Rate(2, 1), Rate(1, 1))
    assert (observed.stable.requests, observed.problems) == (5, ())
    with path.open("a") as file:
        file.write(line("m-2", "0", 1003.0)[-4:])
    assert watched.observe(NAMES).canary.rates["clicks"] == Rate(2, 1)


def test_lines_without_a_time_count_from_the_first_look_on(tmp_path: Path):
    path = tmp_path / "sales.csv"
    path.write_text("revision,value\nm-1,3\nm-2,4\n")
    watched = source(f"revenue=mean:{path}")
    assert watched.observe(NAMES).stable.means == {"revenue": Mean(0, 0.0, 0.0)}
    with path.open("a") as file:
        file.write("m-1,2.5\nm-1,2\n")
    assert watched.observe(NAMES).stable.means == {"revenue": Mean(2, 4.5, 10.25)}


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("revision,value\n", "m-1,maybe\n", "revision and a number as value were expected"),
        ("revision,value\n", "m-1,nan\n", "revision and a number as value were expected"),
        ("revision,value\n", "m-1\n", "revision and a number as value were expected"),
        ("revision,value\n", "m-1,7\n", "the value of a rate is 0 or 1"),
        ("who,what\n", "", "its first line names the columns"),
        ("revision,value\nm-1,1\n", None, "a file that only grows was expected"),
        (None, "", "cannot be read"),
    ],
    ids=["words", "nan", "short", "no rate", "other columns", "shorter", "absent"],
)
def test_a_file_that_makes_no_sense_is_a_problem(tmp_path: Path, text: str | None, more: str | None, said: str):
    path = tmp_path / "clicks.csv"
    watched = source(f"clicks=rate:{path}")
    if text is not None:
        path.write_text(text)
        watched.observe(NAMES)
        path.write_text("revision\n") if more is None else path.write_text(text + more)
    observed = watched.observe(NAMES)
    assert said in observed.problems[0]
    assert observed.canary.rates == {}


def test_an_endpoint_is_told_the_revisions_and_counts_from_the_first_look_on():
    asked = []
    answers = iter([(10, 4, 3, 1), (30, 9, 8, 2), (29, 9, 8, 2)])

    def answer(query: str) -> str:
        asked.append(parse_qs(query))
        a, b, c, d = next(answers)
        return json.dumps({"stable": {"count": a, "events": b}, "canary": {"count": c, "events": d}})

    with pages(clicks=answer) as served:
        watched = source(f"clicks=rate:{served.url('/clicks')}?shop=1")
        assert watched.observe(NAMES).stable.rates == {"clicks": Rate(0, 0)}
        observed = watched.observe(NAMES)
        assert (observed.stable.rates["clicks"], observed.canary.rates["clicks"]) == (Rate(20, 5), Rate(5, 1))
        assert "went back from 9 of 30 to 9 of 29" in watched.observe(NAMES).problems[0]
    assert asked[0] == {"shop": ["1"], "stable": ["m-1"], "canary": ["m-2"]}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("<html>", "was expected, b'<html>' came"),
        ('{"stable": {"count": 1, "events": 0}}', "was expected"),
        ('{"stable": {"count": 1, "events": 2}, "canary": {"count": 1, "events": 0}}', "2 of 1; at most all"),
        ('{"stable": {"count": 1}, "canary": {"count": 1, "events": 0}}', "events: missing"),
        ('{"stable": {"count": 1.5, "events": 0}, "canary": {"count": 1, "events": 0}}', "not whole"),
    ],
    ids=["html", "one arm", "more events than chances", "no events", "half a click"],
)
def test_an_endpoint_that_answers_nonsense_is_a_problem(answer: str, said: str):
    with pages(clicks=answer) as served:
        observed = source(f"clicks=rate:{served.url('/clicks')}").observe(NAMES)
    assert said in observed.problems[0]


def test_counters_of_a_prometheus_add_up_over_processes_that_restart_and_go():
    series = {"offers": {"p": 100, "q": 50}, "clicks": {"p": 10, "q": 5}}

    def answer(query: str) -> str:
        name = parse_qs(query)["query"][0].partition("{")[0]
        result = [
            {"metric": {"pod": pod, "rev": "m-1"}, "value": [1.0, str(value)]} for pod, value in series[name].items()
        ]
        return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})

    with pages() as served:
        served.answers["/api/v1/query"] = answer
        address = served.url("/?count=offers&events=clicks&label=rev")
        watched = source(f"clicks=rate:prom+{address}")
        assert watched.observe(NAMES).stable.rates == {"clicks": Rate(0, 0)}
        series |= {"offers": {"p": 120, "q": 60}, "clicks": {"p": 12, "q": 6}}
        assert watched.observe(NAMES).stable.rates == {"clicks": Rate(30, 3)}
        series |= {"offers": {"p": 4, "new": 2}, "clicks": {"p": 1, "new": 1}}
        observed = watched.observe(NAMES)
        assert observed.stable.rates == {"clicks": Rate(36, 5)}
        assert observed.canary.rates == {"clicks": Rate(0, 0)}


@pytest.mark.parametrize(
    "text",
    [
        "clicks",
        "clicks=share:a.csv",
        "clicks=rate:a.txt",
        "=rate:a.csv",
        "clicks=rate:prom+http://h/?count=a",
        "c=mean:",
    ],
)
def test_what_is_none_of_the_forms_is_refused_at_once(text: str):
    with pytest.raises(ConfigError, match=r"expected|is read from"):
        parse_metric(text)
