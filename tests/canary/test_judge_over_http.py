"""The judge is asked over HTTP by pipelines, by Argo Rollouts and by Flagger, and says in words what it cannot use."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from canary_support import Rollout, Truth
from serinus.canary.policy import load_policy
from serinus.canary.replay import Replay
from serinus.canary.web.judge_answers import JudgeAnswers
from serinus.canary.web.judged_runs import JudgedRuns
from serinus.canary.web.listener import Listener, Request
from serinus.errors import ConfigError

PAGE = Path(__file__).resolve().parents[2] / "runtimes" / "serinus" / "JUDGE.md"


def looks_of(truth: Truth, run: str, looks: int = 200) -> list[dict[str, Any]]:
    return [look.as_json() for look in Rollout(canary=truth, looks=looks).simulate(np.random.default_rng(3), run)]


def judged(most: int = 10) -> JudgeAnswers:
    return JudgeAnswers(JudgedRuns(load_policy(), most))


def post(answers: JudgeAnswers, value: Any, path: str = "/looks") -> tuple[int, Any]:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    answer = answers.answer(Request("POST", path, {}, body))
    return answer.status, json.loads(answer.body)


def get(answers: JudgeAnswers, path: str, method: str = "GET", **query: str) -> tuple[int, Any]:
    answer = answers.answer(Request(method, path, query))
    return answer.status, json.loads(answer.body)


def test_looks_that_are_posted_are_decided_on_as_recorded_ones_are():
    answers = judged()
    lines = looks_of(Truth(errors=0.03), "bad")
    expected = [
        each.as_json() for each in Replay(load_policy(), "x").decisions(json.dumps(line).encode() for line in lines)
    ]
    found = [post(answers, line)[1] for line in lines[: len(expected)]]
    assert [{key: each[key] for key in expected[0]} for each in found] == expected
    assert (found[-1]["decision"], found[-1]["outcome"]) == ("rollback", "failure")
    assert found[0]["outcome"] == "inconclusive"
    # A run that has ended keeps its decision, whatever comes.
    assert post(answers, lines[-1])[1] == found[-1]
    assert get(answers, "/decision", run="bad") == (200, found[-1])


def test_a_list_of_looks_of_several_runs_is_decided_on_in_its_order():
    answers = judged()
    both = [look for pair in zip(looks_of(Truth(), "a", 5), looks_of(Truth(), "b", 5), strict=True) for look in pair]
    status, found = post(answers, both)
    assert status == 200
    assert [(each["run"], each["look"]) for each in found] == [(run, look) for look in range(1, 6) for run in "ab"]
    assert get(answers, "/runs") == (200, {"runs": ["a", "b"]})


GOOD = {"seconds": 1, "stable": {"requests": 1}, "canary": {"requests": 1}}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ([], "0 looks; 1 to"),
        ("look", "a look is a JSON object"),
        ([GOOD, 3], "look 2 of 2: a look is a JSON object"),
        ({**GOOD, "seconds": -1}, "before the rollout began"),
        ({**GOOD, "runn": "a"}, "did you mean run?"),
        ({**GOOD, "run": "x" * 600}, "600 characters"),
        ([{**GOOD, "seconds": 9}, GOOD], "look 2 of 2, run '': seconds: went back from 9 to 1; looks are expected in order; the 1 before"),
        (
            {**GOOD, **{arm: {"requests": 1, "rates": {str(i): {"count": 1, "events": 0} for i in range(65)}} for arm in ("stable", "canary")}},
            "more than 64 rates and means",
        ),
    ],
)  # fmt: skip
def test_what_is_no_look_is_refused_in_words(value: Any, said: str):
    status, answer = post(judged(), value)
    assert status == 400
    assert said in answer["error"]


def test_a_look_that_is_refused_changes_nothing():
    answers = judged()
    assert post(answers, {**GOOD, "seconds": 5})[0] == 200
    before = get(answers, "/decision", run="")
    assert post(answers, GOOD)[0] == 400
    assert get(answers, "/decision", run="") == before
    assert post(answers, {**GOOD, "seconds": 6})[1]["look"] == 2


def test_runs_beyond_the_bound_make_room_and_are_counted():
    answers = judged(3)
    for index in range(5):
        post(answers, {**GOOD, "run": str(index)})
        post(answers, {**GOOD, "run": "0", "seconds": index + 1})  # posted to all the time, so it stays
    assert get(answers, "/runs")[1]["runs"] == ["3", "4", "0"]
    status, answer = get(answers, "/decision", run="1")
    assert status == 404
    assert "was forgotten" in answer["error"]
    page = answers.answer(Request("GET", "/metrics", {})).body.decode()
    assert "serinus_canary_judge_forgotten_runs_total 2" in page
    assert "serinus_canary_judge_runs 3" in page
    assert 'serinus_canary_judge_decisions_total{decision="hold"} 10' in page
    assert get(answers, "/decision", "DELETE", run="0") == (200, {"forgotten": "0"})
    assert get(answers, "/decision", "DELETE", run="0")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/", 404, "POST /looks"),
        ("GET", "/looks", 405, "asked with POST"),
        ("POST", "/healthz", 405, "asked with GET"),
        ("GET", "/decision", 400, "?run=NAME is missing"),
        ("GET", "/healthz", 200, ""),
    ],
)
def test_what_is_asked_wrongly_is_told_how_to_ask(method: str, path: str, status: int, said: str):
    answer = judged().answer(Request(method, path, {}))
    assert answer.status == status
    assert said in json.loads(answer.body).get("error", "")


HOOKS = ("rollout", "confirm-traffic-increase", "confirm-promotion", "rollback")


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (None, (200, 409, 409, 409)),
        ("hold", (200, 409, 409, 409)),
        ("advance", (200, 200, 409, 409)),
        ("promote", (200, 200, 200, 409)),
        ("rollback", (409, 409, 409, 200)),
    ],
)
def test_flaggers_hooks_pass_as_the_decision_says(decision: str | None, expected: tuple[int, ...]):
    answers = judged()
    truth = Truth(errors=0.03) if decision == "rollback" else Truth()
    if decision == "promote":
        looks = [
            look.as_json() for look in Rollout(looks=60, requests=30_000).simulate(np.random.default_rng(3), "prod/m")
        ]
    else:
        looks = looks_of(truth, "prod/m", 200)
    for look in looks if decision else ():
        if post(answers, look)[1]["decision"] == decision:
            break
    else:
        assert decision is None
    body = {"name": "m", "namespace": "prod", "phase": "Progressing", "checksum": "85d557f47b", "metadata": {}}
    assert tuple(post(answers, body, f"/flagger/{hook}")[0] for hook in HOOKS) == expected
    named = {"name": "x", "namespace": "y", "metadata": {"run": "prod/m"}}
    assert tuple(post(answers, named, f"/flagger/{hook}")[0] for hook in HOOKS) == expected


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"name": 1, "namespace": "a"}'])
def test_what_flagger_does_not_send_is_refused(body: bytes):
    status, answer = post(judged(), body, "/flagger/rollout")
    assert status == 400
    assert "expected" in answer["error"]


@contextmanager
def process(*words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`serinus canary judge`, and its port."""
    started = subprocess.Popen(
        [sys.executable, "-m", "serinus.cli", "canary", "judge", "--port", "0", *words],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        yield started, int(re.findall(r":(\d+)/", line)[0])
    finally:
        started.kill()
        started.communicate(timeout=10)


@pytest.mark.slow
def test_the_command_listens_on_loopback_answers_and_ends_when_told():
    with process() as (started, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/looks", json.dumps({**GOOD, "run": "a b/c"}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Type")) == (200, "application/json")
        assert json.loads(answer.read())["decision"] == "hold"
        connection.close()
        connection.request("GET", "/decision?run=a%20b%2Fc")
        assert json.loads(connection.getresponse().read())["run"] == "a b/c"
        connection.close()
        started.send_signal(signal.SIGTERM)
        assert started.wait(10) == 0


def test_a_web_page_of_another_origin_cannot_post():
    listener = Listener("127.0.0.1", 0, judged().answer)
    listener.start()
    try:
        port = int(listener.url.rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/looks", json.dumps(GOOD), {"Origin": "http://evil.example"})
        assert connection.getresponse().status == 403
        connection.close()
    finally:
        listener.close()


def ask_as(listener: Listener, host: str | None, origin: str = "", method: str = "GET") -> int:
    port = int(listener.url.rstrip("/").rpartition(":")[2])
    fields = {} if host is None else {"Host": host.replace("PORT", str(port))}
    fields |= {"Origin": origin.replace("PORT", str(port))} if origin else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, "/healthz" if method == "GET" else "/looks", skip_host=True)
    body = json.dumps(GOOD).encode() if method == "POST" else b""
    for name, value in {**fields, "Content-Length": str(len(body))}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    try:
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_page_that_was_led_here_by_its_own_name_neither_reads_nor_posts(address: str):
    listener = Listener(address, 0, judged().answer)
    listener.start()
    try:
        for name in ("evil.example", "evil.example:PORT", "localhost.evil.example", "127.0.0.1.evil.example:PORT", "serinus-judge.dev",
                     "svc", "evil.svc.example", "evil.example@localhost", "[::1", ""):  # fmt: skip
            is_fine = address == "0.0.0.0" and name in ("svc", "")
            assert ask_as(listener, name) == (200 if is_fine else 403), name
        assert ask_as(listener, "evil.example:PORT", "http://evil.example:PORT", "POST") == 403
        for name in ("127.0.0.1:PORT", "localhost", "LOCALHOST:PORT", "me.localhost.", "[::1]:PORT"):
            assert ask_as(listener, name) == 200, name
        assert ask_as(listener, "127.0.0.1:PORT", "http://127.0.0.1:PORT", "POST") == 200
    finally:
        listener.close()


def test_beyond_loopback_addresses_services_and_allowed_names_may_be_asked():
    listener = Listener("0.0.0.0", 0, judged().answer, allowed_hosts=["Judge.Example.org.", ".corp.example"])
    listener.start()
    try:
        for name in ("10.1.2.3:8099", "[fd00::1]:8099", "serinus-judge:8099", "serinus-judge.serinus.svc", "judge.serinus.svc.cluster.local:8099",
                     "judge.example.org:443", "a.b.corp.example", "gpu1.local"):  # fmt: skip
            assert ask_as(listener, name) == 200, name
        for name in ("example.org", "x.judge.example.org", "corp.example", "notcorp.example"):
            assert ask_as(listener, name) == 403, name
    finally:
        listener.close()


@pytest.mark.parametrize("name", ["", ".", "http://judge.example", "judge.example:80", "a b", "*.example.org", "[::1]"])
def test_what_is_no_name_cannot_be_allowed(name: str):
    with pytest.raises(ConfigError, match="--allow-host"):
        Listener("127.0.0.1", 0, judged().answer, allowed_hosts=[name])


def test_a_fault_of_ours_is_answered_and_logged(caplog: pytest.LogCaptureFixture):
    def broken(_: Request) -> Any:
        raise RuntimeError("as expected")

    listener = Listener("127.0.0.1", 0, broken)
    listener.start()
    try:
        port = int(listener.url.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert b" 500 " in client.recv(1000)
    finally:
        listener.close()
    assert "as expected" in caplog.text


# The page's manifests

BLOCKS = [
    block
    for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for block in yaml.safe_load_all(text)
]


def block(kind: str) -> dict[str, Any]:
    return next(each for each in BLOCKS if each["kind"] == kind)


def test_argos_template_has_the_fields_that_argo_knows_and_asks_what_the_judge_answers():
    template = block("AnalysisTemplate")
    assert template["apiVersion"] == "argoproj.io/v1alpha1"
    names = {argument["name"] for argument in template["spec"]["args"]}
    for metric in template["spec"]["metrics"]:
        # argo-rollouts pkg/apis/rollouts/v1alpha1/analysis_types.go: Metric, WebMetric
        known = {"name", "interval", "initialDelay", "count", "successCondition", "failureCondition", "failureLimit"}
        known |= {"inconclusiveLimit", "consecutiveErrorLimit", "consecutiveSuccessLimit", "provider"}
        assert metric.keys() <= known
        web = metric["provider"]["web"]
        assert web.keys() <= {"method", "url", "headers", "body", "timeoutSeconds", "jsonPath", "insecure", "jsonBody"}
        assert set(re.findall(r"\{\{args\.([\w-]+)\}\}", json.dumps(metric))) <= names
        path, _, query = web["url"].partition("?")
        answers = judged()
        post(answers, {**GOOD, "run": "r"})
        status, answer = get(answers, "/" + path.rpartition("/")[2], web.get("method", "GET"), run="r")
        assert (status, query) == (200, "run={{args.run}}")
        key = re.fullmatch(r"\{\$\.(\w+)\}", web["jsonPath"])
        assert key is not None
        # What the conditions compare with are decisions, and no one is both.
        success, failure = (set(re.findall(r'"(\w+)"', metric[f"{each}Condition"])) for each in ("success", "failure"))
        assert answer[key[1]] not in success | failure
        assert success | failure <= {"hold", "advance", "promote", "rollback"}
        assert "rollback" in failure - success
        assert metric["failureLimit"] == 0


def test_flaggers_webhooks_have_the_fields_that_flagger_knows_and_an_answer():
    canary = block("Canary")
    assert canary["apiVersion"] == "flagger.app/v1beta1"
    hooks = canary["spec"]["analysis"]["webhooks"]
    assert {hook["type"] for hook in hooks} == set(HOOKS)
    for hook in hooks:
        # flagger pkg/apis/flagger/v1beta1/canary.go: CanaryWebhook
        assert hook.keys() <= {"name", "type", "url", "timeout", "metadata", "muteAlert", "retries", "disableTLS"}
        assert hook["url"].endswith(f"/flagger/{hook['type']}")
        assert all(isinstance(value, str) for value in hook.get("metadata", {}).values())
        body = {"name": "m", "namespace": "prod", "metadata": hook.get("metadata", {})}
        assert post(judged(), body, f"/flagger/{hook['type']}")[0] in (200, 409)
