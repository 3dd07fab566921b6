"""Outcomes that are known weeks after the prediction: read by id from files and endpoints, joined, judged when they come, waited for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from canary_pages import pages
from canary_world import Crash, World, crash, world
from kubernetes_server import KubernetesServer
from serinus.canary.judge import Judge
from serinus.canary.looks import Arm, Rate, parse_look
from serinus.canary.policy import load_policy, parse_policy
from serinus.canary.rollout.arm_sums import add_arms, subtract_arms
from serinus.canary.rollout.controller import Controller, RunOptions
from serinus.canary.rollout.run_events import Event
from serinus.canary.rollout.run_files import RunFiles
from serinus.canary.sources.business_metrics import WithBusiness, parse_metric
from serinus.canary.sources.pod_scrape import PodScrape
from serinus.canary.sources.source import ArmNames, Observation
from serinus.canary.targets.kserve_target import KServeTarget
from serinus.canary.targets.kubeconfig import Access
from serinus.canary.targets.kubernetes_client import KubernetesClient
from serinus.cli import main
from serinus.errors import ConfigError, InvalidInput

NAMES = ArmNames("m-1", "m-2", "m", 1000.0)


class Requests:
    """A source of requests alone."""

    def observe(self, names: ArmNames) -> Observation:
        return Observation(Arm(requests=5), Arm(requests=1))


def source(text: str, now: float = 1000.0) -> WithBusiness:
    return WithBusiness(Requests(), [parse_metric(text, clock=lambda: now)])


def both(observed: Observation, name: str = "caught") -> tuple[Rate, Rate]:
    assert observed.problems == ()
    return observed.stable.rates[name], observed.canary.rates[name]


def test_predictions_and_outcomes_of_two_files_are_joined_by_id_as_they_come(tmp_path: Path):
    predictions, outcomes = tmp_path / "predictions.csv", tmp_path / "outcomes.jsonl"
    predictions.write_text(
        "time,id,revision,predicted\n999,before,m-2,1\n1001,a,m-1,1\n1001,b,m-2,0\n1002,c,m-2,fraud\n1002,other,m-9,1\n"
    )
    outcomes.write_text("")
    watched = source(f"caught=labels:{predictions},{outcomes}")
    assert both(watched.observe(NAMES)) == (Rate(0, 0, 1), Rate(0, 0, 2))
    with outcomes.open("a") as file:
        for key, outcome in (("a", True), ("b", 1), ("b", 0), ("before", 1), ("other", 1)):
            file.write(json.dumps({"id": key, "outcome": outcome}) + "\n")
        file.write('{"id": "c", "outcome": "fr')
    assert both(watched.observe(NAMES)) == (Rate(1, 1, 0), Rate(1, 0, 1)), "half a line waits for its other half"
    with outcomes.open("a") as file:
        file.write('aud"}\n{"id": "late", "outcome": 1}\n')
    with predictions.open("a") as file:
        file.write("1003,late,m-1,1\n")
    assert both(watched.observe(NAMES)) == (Rate(2, 2, 0), Rate(2, 1, 0)), "in either order"


def test_a_line_without_a_time_counts_where_it_comes_after_the_first_look(tmp_path: Path):
    path = tmp_path / "all.jsonl"
    path.write_text('{"id": 1, "revision": "m-2", "outcome": 1}\n')
    watched = source(f"caught=labels:{path}")
    assert both(watched.observe(NAMES)) == (Rate(0, 0, 0), Rate(0, 0, 0))
    with path.open("a") as file:
        file.write('{"id": 2, "revision": "m-2", "outcome": true}\n{"id": 3, "revision": "m-2", "outcome": false}\n')
    assert both(watched.observe(NAMES))[1] == Rate(2, 1, 0)


@pytest.mark.parametrize("has_cursor", [True, False], ids=["cursor", "all lines each time"])
def test_an_endpoint_tells_lines_from_a_cursor_on_or_all_of_them(has_cursor: bool):
    lines = [{"id": key, "revision": "m-1", "time": 1001} for key in "abc"]
    asked = []

    def answer(query: str) -> str:
        given = parse_qs(query, keep_blank_values=True)
        asked.append((given["stable"], given["canary"], given["team"]))
        if not has_cursor:
            return json.dumps({"lines": lines})
        after = int(given["after"][0] or 0)
        return json.dumps({"lines": lines[after : after + 2], "next": min(after + 2, len(lines))})

    with pages(labels=answer) as served:
        watched = source(f"caught=labels:{served.url('/labels?team=risk')}")
        assert both(watched.observe(NAMES))[0] == Rate(0, 0, 3)
        lines.append({"id": "b", "outcome": "1"})
        assert both(watched.observe(NAMES))[0] == Rate(1, 1, 2)
        assert both(watched.observe(NAMES))[0] == Rate(1, 1, 2)
    assert set(map(str, asked)) == {str((["m-1"], ["m-2"], ["risk"]))}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "who,what\n", "its first line names the columns; id with revision"),
        ("a.csv", "id,revision\n,m-1\n", "a.csv:2: an id and a revision"),
        ("a.csv", "id,revision,outcome\nx,,\n", "a.csv:2: an id and a revision"),
        ("a.csv", "id,revision,time\nx,m-1,noon\n", "a.csv:2: time is 'noon'"),
        ("a.csv", "id,revision,time\nx,m-1,nan\n", "a.csv:2: time is 'nan'"),
        ("a.jsonl", "[]\n", "a.jsonl:1: an id and a revision"),
        ("a.jsonl", '{"id": 1,\n', "a.jsonl:1: b'{\"id\": 1,\\n' is no line of jsonl"),
        ("a.jsonl", "\udcff\udcfe\n", "is no line of jsonl"),
        ("a.jsonl", None, "cannot be read"),
    ],
)
def test_a_file_that_makes_no_sense_is_a_problem_until_it_is_mended(
    tmp_path: Path, name: str, text: str | None, said: str
):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    watched = source(f"caught=labels:{path}")
    for _ in range(2):
        observed = watched.observe(NAMES)
        assert len(observed.problems) == 1
        assert said in observed.problems[0]
        assert observed.problems[0].startswith("metric caught: ")
        assert observed.canary.rates == {}
    path.write_text("id,revision,outcome\n" if name.endswith("csv") else '{"id": "a", "outcome": 1}\n')
    if text is None:
        assert watched.observe(NAMES).problems == ()


@pytest.mark.parametrize("body", ["", "[]", '{"lines": 1}', '{"lines": [1]}', "null", '{"next": "2"}'])
def test_an_endpoint_that_answers_nonsense_is_a_problem(body: str):
    with pages(labels=body) as served:
        (problem,) = source(f"caught=labels:{served.url('/labels')}").observe(NAMES).problems
    assert "was expected" in problem


@pytest.mark.parametrize("where", ["a.txt", "a.csv,b", "ftp://h/a", "a.csv,", "prom+http://h/?count=a"])
def test_what_is_neither_a_file_nor_an_endpoint_is_refused_at_once(where: str):
    with pytest.raises(ConfigError, match="separated by commas"):
        parse_metric(f"caught=labels:{where}")


def test_a_source_counts_from_the_runs_beginning_whoever_began_it(tmp_path: Path):
    path = tmp_path / "all.jsonl"
    path.write_text('{"id": 1, "revision": "m-2", "time": 1001}\n')
    assert both(source(f"caught=labels:{path}", now=5000.0).observe(NAMES))[1] == Rate(0, 0, 1)
    without = ArmNames("m-1", "m-2", "m")
    assert both(source(f"caught=labels:{path}", now=5000.0).observe(without))[1] == Rate(0, 0, 0)


def test_prometheus_counts_tell_how_many_wait_where_predictions_are_counted():
    def answer(query: str) -> str:
        text = parse_qs(query)["query"][0]
        name = text.partition("{")[0]
        values = {"seen": 80 * turn[0], "right": 60 * turn[0], "said": 100 * turn[0]}
        result = [
            {"metric": {"__name__": name, "revision": revision}, "value": [1.0, str(values[name])]}
            for revision in ("m-1", "m-2")
        ]
        return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})

    turn = [1]
    with pages() as served:
        served.answers["/api/v1/query"] = answer
        url = served.url("/").replace("http://", "prom+http://")
        watched = source(f"caught=rate:{url}?count=seen&events=right&predictions=said")
        assert both(watched.observe(NAMES))[1] == Rate(0, 0, 0)
        turn[0] = 3
        assert both(watched.observe(NAMES)) == (Rate(160, 120, 40), Rate(160, 120, 40))


def test_an_endpoint_of_counts_may_tell_what_waits():
    turn = [0]

    def answer(_: str) -> str:
        arm = {"count": 10 + turn[0], "events": 4 + turn[0], "waiting": 7 - turn[0]}
        return json.dumps({"stable": arm, "canary": arm})

    with pages(counts=answer) as served:
        watched = source(f"caught=rate:{served.url('/counts')}")
        watched.observe(NAMES)
        turn[0] = 2
        assert both(watched.observe(NAMES))[1] == Rate(2, 2, 5)


def test_what_waits_is_no_sum_of_what_waited():
    one, other = (Arm(requests=1, rates={"caught": rate}) for rate in (Rate(5, 2, 9), Rate(3, 1, 4)))
    assert add_arms(one, other).rates["caught"] == Rate(8, 3, 4)
    assert subtract_arms(one, other).rates["caught"] == Rate(2, 1, 9)


# Judged

POLICY = """
steps: [10, 50, 100]
level: 0.05
minimum: {canary_requests: 200, seconds: 60}
guardrails:
  rates:
    caught: {better: higher, margin_percentage_points: 10, minimum_count: 100, minimum_labelled_percent: 80}
"""


def look_line(index: int, labelled: float, right: float = 0.9, waiting: bool = True) -> str:
    """A look whose canary has had 10 % of 1,000 requests a look, of which a share is labelled."""
    arms = {}
    for name, each, good in (("stable", 900, 0.9), ("canary", 100, right)):
        count = round(each * index * labelled)
        rate = {"count": count, "events": round(count * good)}
        arms[name] = {
            "requests": each * index,
            "rates": {"caught": {**rate, "waiting": each * index - count} if waiting else rate},
        }
    return json.dumps({"seconds": 60 * index, "percent": 10, **arms})


def test_a_promotion_waits_until_the_outcomes_have_come_and_says_how_many_are_missing():
    judge = Judge(parse_policy(POLICY))
    for index in range(1, 40):
        decision = judge.look(parse_look(look_line(index, 0.5)))
        assert decision.decision != "promote"
    said = "outcomes of 50 % of stable's predictions have come, 80 % are waited for"
    assert any(said in reason for reason in decision.reasons)
    assert any("outcomes waited for: canary 1,950, stable 17,550" in reason for reason in decision.reasons)
    assert decision.requests_needed is None, "no further request brings them"
    assert judge.look(parse_look(look_line(40, 0.85))).decision == "promote"


def test_a_bad_version_is_rolled_back_by_the_first_outcomes_that_suffice():
    judge = Judge(parse_policy(POLICY))
    for index in range(1, 40):
        decision = judge.look(parse_look(look_line(index, 0.2, right=0.4)))
        if decision.is_final:
            break
    assert (decision.decision, decision.metric) == ("rollback", "caught")
    assert index < 30


def test_looks_that_do_not_tell_what_waits_promote_nothing_where_the_policy_waits_for_it():
    judge = Judge(parse_policy(POLICY))
    for index in range(1, 40):
        decision = judge.look(parse_look(look_line(index, 1.0, waiting=False)))
        assert decision.decision != "promote"
    assert any("looks do not tell how many outcomes are waited for" in reason for reason in decision.reasons)


def test_a_replay_takes_looks_with_late_outcomes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "policy.yaml").write_text(POLICY)
    lines = [look_line(index, 0.5 if index < 30 else 0.9) for index in range(1, 41)]
    (tmp_path / "looks.jsonl").write_text("\n".join(lines))
    words = ["canary", "replay", "--policy", str(tmp_path / "policy.yaml"), str(tmp_path / "looks.jsonl")]
    assert main([*words, "-o", "json", "--final"]) == 0
    final = json.loads(capsys.readouterr().out)
    assert (final["decision"], final["look"]) == ("promote", 30)


@pytest.mark.parametrize("value", ["101", "-1", "yes", ".nan"])
def test_a_share_of_outcomes_that_is_none_is_refused(value: str):
    with pytest.raises(
        ConfigError, match=r"minimum_labelled_percent: is .*; a number of 0 or more, 100 at most was expected"
    ):
        parse_policy(POLICY.replace("minimum_labelled_percent: 80", f"minimum_labelled_percent: {value}"))


def test_waiting_is_a_count():
    with pytest.raises(InvalidInput, match=r"stable\.rates\.caught\.waiting: -1 is negative"):
        parse_look(look_line(1, 0.5).replace('"waiting": 450', '"waiting": -1'))
    assert load_policy().rates == {}


# A whole run, with what is late beside it


class Labelled:
    """A world whose predictions and outcomes are in files."""

    def __init__(self, made: World, right: float) -> None:
        self.made, self.right = made, right
        self.predictions, self.outcomes = made.folder / "predictions.csv", made.folder / "outcomes.jsonl"
        self.predictions.write_text("time,id,revision,predicted\n")
        self.outcomes.write_text("")
        self.waiting: list[tuple[str, bool]] = []
        self.number = 0

    def predict(self) -> None:
        share = self.made.share() / 100
        with self.predictions.open("a") as file:
            for revision, count, right in zip(
                self.made.revisions, (1000 * (1 - share), 1000 * share), (0.9, self.right), strict=True
            ):
                for index in range(round(count)):
                    self.number += 1
                    file.write(f"{self.made.now},{self.number},{revision},1\n")
                    self.waiting.append((str(self.number), index % 10 < 10 * right))

    def label(self) -> None:
        """Outcomes of the next 2,000 predictions."""
        with self.outcomes.open("a") as file:
            for key, is_right in self.waiting[:2000]:
                file.write(json.dumps({"id": key, "outcome": is_right}) + "\n")
        del self.waiting[:2000]

    def controller(self, events: list[Event]) -> Controller:
        made = self.made
        target = KServeTarget(KubernetesClient(Access("127.0.0.1", made.server.port)), "default", "m")
        metric = parse_metric(f"caught=labels:{self.predictions},{self.outcomes}", clock=lambda: made.now)
        return Controller(
            target,
            WithBusiness(PodScrape(target.endpoints), [metric]),
            parse_policy(POLICY.replace("steps: [10, 50, 100]", "steps: [10, 100]")),
            RunFiles(made.folder / "runs", "m"),
            RunOptions(interval_s=30.0),
            tell=events.append,
            clock=lambda: made.now,
            sleep=made.sleep,
        )


def status_of(server: KubernetesServer, folder: Path) -> int:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k"}}],
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    return main(["canary", "status", "m", "--kubeconfig", str(folder / "kubeconfig"), "-n", "default"])


@pytest.mark.slow
@pytest.mark.parametrize(("right", "kind"), [(0.9, "promoted"), (0.4, "rolled back")])
def test_a_run_waits_for_outcomes_over_a_crash_and_ends_when_they_come(
    tmp_path: Path, right: float, kind: str, capsys: pytest.CaptureFixture[str]
):
    with world(tmp_path) as made:
        labelled = Labelled(made, right)
        steps: list[Callable[[], None]] = [labelled.predict] * 20
        made.on_sleep = [*steps, crash]
        with pytest.raises(Crash):
            labelled.controller(made.events).run()
        assert made.share() == 10
        last = [event for event in made.events if event.kind == "look"][-1]
        assert last.details["counts"]["canary"]["rates"]["caught"] == {"count": 0, "events": 0, "waiting": 2000}
        capsys.readouterr()
        assert status_of(made.server, tmp_path) == 0
        assert "caught: outcomes waited for: canary 2,000, stable 18,000" in capsys.readouterr().out
        # Weeks later another process goes on, and the outcomes come.
        made.now += 14 * 86_400
        made.on_sleep = [lambda: None, *[labelled.label] * 10, *[crash] * 2]
        made.events.clear()
        ending = labelled.controller(made.events).run()
        assert ending.kind == kind, ending.words
        assert ending.decision is not None
        last = [event for event in made.events if event.kind == "look"][-1]
        caught = last.details["counts"]["canary"]["rates"]["caught"]
        assert caught["count"] + caught["waiting"] == 2000, "predictions of before the crash count once"
        assert caught["count"] >= (1600 if kind == "promoted" else 100)
        assert caught["events"] == round(caught["count"] * right)
        page = tmp_path / "report.html"
        assert main(["canary", "report", "m", "--records", str(tmp_path / "runs"), "--html", str(page)]) == 0
        assert f"outcomes waited for: canary {caught['waiting']:,}, stable" in page.read_text()
        capsys.readouterr()
        assert main(["canary", "report", "m", "--records", str(tmp_path / "runs")]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["last_look"]["canary"]["rates"]["caught"] == caught
