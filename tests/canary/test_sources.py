"""Both arms' counts, read off pods and a Prometheus that come, restart, lie and fall silent."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from canary_pages import Pages, free_port, page_of, pages, prometheus, requests_to, wait_until
from rest_support import rest_in_thread
from serinus.canary.looks import Latency
from serinus.canary.sources.pod_scrape import Endpoint, PodScrape
from serinus.canary.sources.prometheus_source import KNATIVE, PrometheusSource
from serinus.canary.sources.source import ArmNames, Observation

pytestmark = pytest.mark.slow  # real servers and a real Prometheus

NAMES = ArmNames("m-1", "m-2", "m")
OLD, LONG_AGO = 1_000.0, 900.0


def scrape(served: Pages, *paths: str, **options: Any) -> PodScrape:
    """A source over `/a1` (stable, as the target knows), `/b1` (canary) and so on."""
    revisions = {"a": "m-1", "b": "m-2", "c": "m-3"}
    endpoints = [Endpoint(f"pod {path}", served.url(f"/{path}"), revisions[path[0]]) for path in paths]
    return PodScrape(lambda: endpoints, timeout_s=5.0, **options)


def counts(observed: Observation) -> tuple[int, int | None, int, int | None]:
    return observed.stable.requests, observed.stable.errors, observed.canary.requests, observed.canary.errors


def test_counts_begin_with_the_first_look_and_pods_of_an_arm_add_up():
    with pages() as served:
        served.answers |= {
            "/a1": page_of("m-1", started=OLD, success=5000, failed=9),
            "/a2": page_of("m-1", started=OLD, success=4000),
            "/b1": page_of("m-2", started=OLD, success=30),
        }
        source = scrape(served, "a1", "a2", "b1")
        first = source.observe(NAMES)
        assert counts(first) == (0, 0, 0, 0)
        served.answers |= {
            "/a1": page_of("m-1", started=OLD, success=5090, failed=10, cancelled=7),
            "/a2": page_of("m-1", started=OLD, success=4080),
            "/b1": page_of("m-2", started=OLD, success=45, rejected=1, timeout=2, invalid=3, other=4),
        }
        second = source.observe(NAMES)
        assert counts(second) == (90 + 1 + 80, 1, 15 + 10, 10)
        assert (second.problems, second.notes) == ((), ())


def test_only_the_servers_faults_are_errors_where_that_is_asked():
    with pages() as served:
        served.answers |= {"/a1": page_of("m-1", started=OLD), "/b1": page_of("m-2", started=OLD)}
        source = scrape(served, "a1", "b1", errors="server")
        source.observe(NAMES)
        served.answers["/b1"] = page_of(
            "m-2", started=OLD, success=5, invalid=3, failed=1, transport={"400": 4, "503": 2, "404": 9, "401": 9}
        )
        assert counts(source.observe(NAMES))[2:] == (9 + 2, 1 + 2)


def test_what_never_reached_the_model_counts_where_a_revision_can_have_brought_it_about():
    with pages() as served:
        served.answers |= {"/a1": page_of("m-1", started=OLD), "/b1": page_of("m-2", started=OLD)}
        source = scrape(served, "a1", "b1")
        source.observe(NAMES)
        served.answers["/b1"] = page_of(
            "m-2", started=OLD, success=5, transport={"400": 4, "503": 2, "404": 9, "401": 9}
        )
        assert counts(source.observe(NAMES))[2:] == (11, 6)


def test_histograms_become_counts_of_each_bucket():
    buckets = {"0.001": 1, "0.01": 5, "+Inf": 6}
    with pages() as served:
        served.answers |= {
            "/a1": page_of("m-1", started=OLD, latency=buckets, score={"0.5": 3, "+Inf": 4}),
            "/b1": page_of("m-2", started=OLD, latency=buckets, score={"0.5": 3, "+Inf": 4}),
        }
        source = scrape(served, "a1", "b1")
        source.observe(NAMES)
        later = {"0.001": 3, "0.01": 9, "+Inf": 11}
        served.answers["/b1"] = page_of("m-2", started=OLD, latency=later, score={"0.5": 5, "+Inf": 9})
        observed = source.observe(NAMES)
        assert observed.canary.latency == Latency((0.001, 0.01), (2, 2, 1))
        assert observed.stable.latency == Latency((0.001, 0.01), (0, 0, 0))
        assert (observed.stable.score, observed.canary.score) == ((0, 0), (2, 3))


def test_arms_whose_histograms_have_other_bounds_are_not_compared_by_them():
    with pages() as served:
        served.answers |= {
            "/a1": page_of("m-1", started=OLD, latency={"0.01": 1, "+Inf": 1}, score={"0.5": 3, "+Inf": 4}),
            "/b1": page_of("m-2", started=OLD, latency={"0.02": 1, "+Inf": 1}, score={"0.6": 3, "+Inf": 4}),
        }
        observed = scrape(served, "a1", "b1").observe(NAMES)
        assert (
            observed.stable.latency is observed.canary.latency is observed.stable.score is observed.canary.score is None
        )
        assert [note.split(" have")[0] for note in observed.notes] == ["the arms' latencies", "the arms' scores"]
        assert observed.problems == ()


def test_a_pod_that_restarts_counts_on_and_one_that_goes_keeps_what_it_had():
    with pages() as served:
        served.answers |= {
            "/a1": page_of("m-1", started=OLD, success=100),
            "/b1": page_of("m-2", started=OLD, success=100),
            "/b2": page_of("m-2", started=OLD, success=10),
        }
        source = scrape(served, "a1", "b1", "b2")
        source.observe(NAMES)
        served.answers |= {
            "/a1": page_of("m-1", started=OLD, success=150),
            "/b1": page_of("m-2", started=OLD, success=120),
        }
        assert counts(source.observe(NAMES)) == (50, 0, 20, 0)
        served.answers["/b1"] = page_of("m-2", started=OLD + 500, success=7)
        del served.answers["/b2"]
        observed = source.observe(NAMES)
        assert counts(observed) == (50, 0, 27, 0)
        assert observed.problems == ()
        assert observed.notes[0].startswith("pod b2 was not heard: ")
        assert observed.notes[1] == "pod b1 restarted; what it counted between the last look and its end is lost"


def test_a_pod_that_comes_counts_from_its_start_if_it_is_young_and_else_from_now_on():
    clock = [0.0]
    with pages() as served:
        now = time.time()
        served.answers |= {
            "/a1": page_of("m-1", started=now - 900),
            "/b1": page_of("m-2", started=now - 900),
            "/b2": page_of("m-2", started=now - 20, success=11),
            "/b3": page_of("m-2", started=now - 900, success=5000),
        }
        served.date = formatdate(now, usegmt=True)
        paths = ["a1", "b1"]
        endpoints = [Endpoint(path, served.url(f"/{path}"), "m-1" if path == "a1" else "m-2") for path in paths]
        source = PodScrape(lambda: endpoints, monotonic=lambda: clock[0])
        source.observe(NAMES)
        clock[0] = 60.0
        endpoints += [Endpoint(path, served.url(f"/{path}"), "m-2") for path in ("b2", "b3")]
        assert counts(source.observe(NAMES)) == (0, 0, 11, 0)


@pytest.mark.parametrize("skew_s", [-3600, 3600], ids=["behind", "ahead"])
def test_a_clock_that_differs_is_told_and_changes_no_count(skew_s: float):
    clock = [0.0]
    there = time.time() + skew_s
    with pages() as served:
        served.date = formatdate(there, usegmt=True)
        served.answers |= {
            "/a1": page_of("m-1", started=there - 900, success=5),
            "/b1": page_of("m-2", started=there - 900, success=5),
            "/b2": page_of("m-2", started=there - 20, success=11),
        }
        endpoints = [Endpoint("a1", served.url("/a1"), "m-1"), Endpoint("b1", served.url("/b1"), "m-2")]
        source = PodScrape(lambda: endpoints, monotonic=lambda: clock[0])
        source.observe(NAMES)
        clock[0] = 60.0
        endpoints.append(Endpoint("b2", served.url("/b2"), "m-2"))
        observed = source.observe(NAMES)
        assert counts(observed) == (0, 0, 11, 0)
        assert observed.problems == ()
        assert len(observed.notes) == 3
        assert all("differs from this machine's by" in note for note in observed.notes)


GOOD = page_of("m-2", started=OLD, success=120)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (page_of("m-2", started=OLD, success=90), "pod b1: outcome success went back from 100 to 90"),
        (page_of("m-2", started=OLD, model="other", success=120), "pod b1 has no model 'm'; its models are other"),
        (page_of("m-7", started=OLD, success=120), "pod b1 says that it is of m-7, and was expected to be of m-2"),
        (GOOD.replace('revision="m-2"', 'revision="m-9"', 1), "says that it is of m-2, m-9"),
        (GOOD.replace('outcome="other"', 'outcome="odd"') + "\n", "outcome 'odd' is none of"),
        ("serinus_requests_total{oops 3\n", "no pod of the canary arm (m-2) was heard"),
        ("serinus_requests_total{a=b} 3\n", "no pod of the canary arm (m-2) was heard"),
        ("serinus_requests_total seven\n", "no pod of the canary arm (m-2) was heard"),
        ("<html>not a page</html>", "no model"),
        ("", "pod b1 has no model 'm'; its models are none"),
        (page_of("m-2", started=OLD, success=120, latency={"0.1": 4}), "a histogram has no bucket +Inf"),
        (page_of("m-2", started=OLD, success=120, latency={"0.1": 4, "+Inf": 3}), "do not grow with their bounds"),
        (page_of("m-2", started=OLD, success=120, latency={"wide": 4, "+Inf": 3}), "has the bound 'wide'"),
        (None, "no pod of the canary arm (m-2) was heard"),
    ],
    ids=[
        "counter goes back",
        "other model",
        "other revision",
        "two revisions",
        "unknown outcome",
        "broken labels",
        "unquoted label",
        "no number",
        "html",
        "empty",
        "no +Inf",
        "shrinking buckets",
        "bound of words",
        "404",
    ],
)
def test_nonsense_is_a_problem_of_the_look_and_adds_nothing(page: str | None, said: str):
    with pages() as served:
        before = page_of("m-2", started=OLD, success=100)
        served.answers |= {"/a1": page_of("m-1", started=OLD, success=7), "/b1": before}
        source = scrape(served, "a1", "b1")
        assert source.observe(NAMES).problems == ()
        if page is None:
            del served.answers["/b1"]
        else:
            served.answers["/b1"] = page
        observed = source.observe(NAMES)
        assert any(said in problem for problem in observed.problems), observed.problems
        assert observed.canary.requests in (0, 20)  # where outcomes are sound, they count


def test_a_pod_list_that_fails_is_a_problem_of_the_look():
    from serinus.errors import UpstreamFailed

    def fail() -> list[Endpoint]:
        raise UpstreamFailed("the cluster is away")

    assert PodScrape(fail).observe(NAMES).problems == ("pods cannot be listed: the cluster is away",)


def test_pods_of_neither_arm_are_passed_over():
    with pages() as served:
        served.answers |= {path: page_of(f"m-{n}", started=OLD) for path, n in (("/a1", 1), ("/b1", 2), ("/c1", 3))}
        source = scrape(served, "a1", "b1", "c1")
        source.observe(NAMES)
        served.answers["/c1"] = page_of("m-3", started=OLD, success=70)
        observed = source.observe(NAMES)
        assert counts(observed) == (0, 0, 0, 0)
        assert (observed.problems, observed.notes) == ((), ())


def test_real_servers_are_counted_by_their_own_pages():
    with rest_in_thread("row", revision="m-1") as stable, rest_in_thread("row", revision="m-2") as canary:
        endpoints = [Endpoint(str(port), f"http://127.0.0.1:{port}/metrics") for port in (stable.port, canary.port)]
        source = PodScrape(lambda: endpoints)
        names = ArmNames("m-1", "m-2", "row")
        requests_to(stable.port, 3)
        source.observe(names)
        requests_to(stable.port, 20)
        requests_to(canary.port, 5)
        requests_to(canary.port, 2, columns=2)
        observed = source.observe(names)
        assert counts(observed) == (20, 0, 7, 2)
        assert (observed.problems, observed.notes) == ((), ())
        assert observed.canary.latency is not None
        assert sum(observed.canary.latency.counts) == 5


@pytest.mark.prometheus
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on the PATH")
def test_a_real_prometheus_gives_the_counts_of_real_servers_through_a_restart(tmp_path: Path):
    names = ArmNames("m-1", "m-2", "row")
    with rest_in_thread("row", revision="m-1") as stable, contextlib.ExitStack() as first:
        port = first.enter_context(rest_in_thread("row", revision="m-2")).port
        requests_to(port, 4)
        targets = [f"127.0.0.1:{stable.port}", f"127.0.0.1:{port}"]
        with prometheus(tmp_path, {"models": targets, "again": targets[:1]}) as url:
            ours = 'job="models"'
            wait_until(lambda: not PrometheusSource(url, selector=ours).observe(names).problems)
            source = PrometheusSource(url, selector=ours)
            assert counts(source.observe(names)) == (0, 0, 0, 0)
            requests_to(stable.port, 30)
            requests_to(port, 10)
            requests_to(port, 3, columns=2)
            wait_until(lambda: counts(source.observe(names)) == (30, 0, 13, 3))
            first.close()
            with rest_in_thread("row", revision="m-2", http_port=port):
                requests_to(port, 6)
                wait_until(lambda: counts(source.observe(names)) == (30, 0, 19, 3))
                assert source.observe(names).problems == ()
            absent = PrometheusSource(url, selector='job="nothing"').observe(names)
            assert ["has no series of the stable arm" in absent.problems[0], len(absent.problems)] == [True, 2]
            wait_until(
                lambda: "is scraped under several names" in "".join(PrometheusSource(url).observe(names).problems)
            )
            wrong = PrometheusSource(url, selector='job="').observe(names)
            assert "parse error" in wrong.problems[0]


def matrix(*series: tuple[dict[str, str], list[tuple[float, float]]]) -> str:
    result = [{"metric": labels, "values": [[at, str(value)] for at, value in values]} for labels, values in series]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


def of(revision: str, name: str = "serinus_requests_total", pod: str = "p", **labels: str) -> dict[str, str]:
    own = {"outcome": "success", "model": "m"} if name == "serinus_requests_total" else {}
    return {"__name__": name, "revision": revision, "instance": f"{revision}-{pod}", **own, **labels}


def test_every_sample_between_two_looks_is_entered_so_that_no_restart_is_missed():
    with pages() as served:
        now = time.time()
        start = "process_start_time_seconds"
        both = [(of("m-1"), [(now - 9, 50.0)]), (of("m-1", start), [(now - 9, 1.0)])]
        canary = [(now - 9, 10.0)]
        served.answers["/api/v1/query"] = lambda _: matrix(
            *both,
            (of("m-2"), canary),
            (of("m-2", start), [(at, 1.0 if at < now - 6 else now - 6.5) for at, _ in canary]),
        )
        source = PrometheusSource(served.url(""))
        source.observe(NAMES)
        canary += [(now - 7, 15.0), (now - 5, 3.0), (now - 3, 20.0)]
        observed = source.observe(NAMES)
        assert observed.canary.requests == 5 + 20
        assert "restarted" in observed.notes[0]


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ("not JSON", 200, "none of Prometheus' HTTP API"),
        ('{"status": "success", "data": {"result": 7}}', 200, "none of Prometheus' HTTP API"),
        ('{"status": "success", "data": {"result": [{"metric": {}}]}}', 200, "a series is none of"),
        ('{"status": "error", "error": "too many samples"}', 200, "too many samples"),
        ("overloaded", 503, "status 503: overloaded"),
        (matrix(), 200, "has no series of the canary arm"),
        (matrix((of("m-2"), [(1.0, 5.0)])), 200, "has scraped nothing of the canary arm (m-2) for"),
        (matrix((of("m-2", model="z"), [(1.0, 5.0)])), 200, "has no model 'm'; its models are z"),
        (
            matrix((of("m-2", namespace="a"), [(1.0, 5.0)]), (of("m-2", pod="q", namespace="b"), [(1.0, 5.0)])),
            200,
            "revision m-2 is in the namespaces a, b",
        ),
    ],
    ids=["text", "other form", "no values", "error", "503", "empty", "stale", "other model", "two namespaces"],
)
def test_a_prometheus_that_answers_nonsense_or_nothing_is_a_problem_of_the_look(answer: str, status: int, said: str):
    with pages() as served:
        served.answers["/api/v1/query"] = answer
        served.statuses["/api/v1/query"] = status
        observed = PrometheusSource(served.url("")).observe(NAMES)
        assert any(said in problem for problem in observed.problems), observed.problems
        assert counts(observed) == (0, 0, 0, 0)


def test_nobody_at_the_address_is_a_problem_of_the_look():
    observed = PrometheusSource(f"http://127.0.0.1:{free_port()}").observe(NAMES)
    assert "no answer" in observed.problems[0]


def test_the_query_reaches_back_to_the_look_before_and_quotes_names():
    clock = [0.0]
    with pages() as served:
        served.answers["/api/v1/query"] = matrix()
        source = PrometheusSource(served.url(""), selector='{job="a"}', monotonic=lambda: clock[0])
        names = ArmNames("m.1", "m-2", "m")
        assert 'revision=~"m\\\\.1|m-2",job="a"}[300s]' in source.promql(names)
        source.observe(names)
        clock[0] = 1000.0
        assert source.promql(names).endswith("[1120s]")


def test_knatives_queue_proxy_counts_runtimes_of_any_make():
    def own(revision: str, code: str) -> dict[str, str]:
        name = "revision_app_request_count"
        return {"__name__": name, "revision_name": revision, "instance": revision, "response_code": code}

    with pages() as served:
        now = time.time()
        values = {("m-1", "200"): [(now, 5.0)], ("m-2", "200"): [(now, 5.0)], ("m-2", "500"): [(now, 1.0)]}
        bucket = {"__name__": "revision_app_request_latencies_bucket", "revision_name": "m-2", "instance": "m-2"}
        buckets = {le: [(now, 1.0)] for le in ("10", "+Inf")}
        served.answers["/api/v1/query"] = lambda _: matrix(
            *((own(*key), samples) for key, samples in values.items()),
            *(({**bucket, "le": le}, samples) for le, samples in buckets.items()),
            *(({**bucket, "le": le, "revision_name": "m-1", "instance": "m-1"}, [(now, 0.0)]) for le in buckets),
        )
        source = PrometheusSource(served.url(""), series=KNATIVE)
        source.observe(NAMES)
        for samples, grown in ((values["m-1", "200"], 9), (values["m-2", "200"], 6), (values["m-2", "500"], 3)):
            samples.append((now + 1, float(grown)))
        for le, grown in (("10", 2.0), ("+Inf", 4.0)):
            buckets[le].append((now + 1, grown))
        observed = source.observe(NAMES)
        assert counts(observed) == (4, 0, 3, 2)
        assert observed.canary.latency == Latency((0.01,), (1, 2))
