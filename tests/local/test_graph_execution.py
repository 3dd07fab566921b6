"""What a graph answers, by its nodes and by what its services answer: KServe's router, case by case. No socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serinus.local.router.graph_execution import GraphExecution, GraphFailed, StepAnswer, map_predictions
from serinus.manifests.graphs.inference_graph import parse_nodes

GONE = "gone"
"""A service that does not answer."""


class Recorded:
    """Keeps what is recorded, without the seconds."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, bool]] = []

    def record(self, node: str, step: str, seconds: float, *, failed: bool) -> None:
        assert seconds >= 0
        self.rows.append((node, step, failed))


def through(
    nodes: dict[str, Any], services: dict[str, Any], body: Any = b'{"instances": [1]}', *, pick: int = 0
) -> tuple[int, Any, list[tuple[str, Any]], list[tuple[str, str, bool]]]:
    """Status, answer (JSON where it is some), the calls that were made, and what was recorded.

    Args:
        nodes: as in a manifest.
        services: by URL: a (status, JSON value or bytes), a function of the request's JSON, or GONE.
        body: the request's.
        pick: what the splitter draws.
    """
    calls: list[tuple[str, Any]] = []

    async def call(url: str, request: bytes) -> StepAnswer:
        calls.append((url, _json(request)))
        answer = services[url]
        await asyncio.sleep(0)
        if answer == GONE:
            raise GraphFailed(500, f"Post {url}: no connection")
        status, value = answer(_json(request)) if callable(answer) else answer
        return StepAnswer(status, value if isinstance(value, bytes) else json.dumps(value).encode())

    recorded = Recorded()
    graph = GraphExecution(parse_nodes(nodes), recorded, pick=lambda: pick)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        answer = asyncio.run(graph.run(raw, call))
    except GraphFailed as error:
        return error.status, f"failed: {error}", calls, recorded.rows
    return answer.status, _json(answer.body), calls, recorded.rows


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body


def node(kind: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"routerType": kind, "steps": list(steps)}


def url(address: str, /, **more: Any) -> dict[str, Any]:
    return {"serviceUrl": address, **more}


OK, LATER, BAD, TEXT = (200, {"predictions": [1]}), (200, {"y": 2}), (422, {"error": "bad"}), (503, b"down")
BODY = {"instances": [1]}


@pytest.mark.parametrize(
    ("steps", "services", "status", "answer", "asked"),
    [
        # The answer is the last step's; each gets the request, or the answer before it.
        ([url("a"), url("b")], {"a": OK, "b": LATER}, 200, {"y": 2}, [BODY, BODY]),
        ([url("a"), url("b", data="$request")], {"a": OK, "b": LATER}, 200, {"y": 2}, [BODY, BODY]),
        ([url("a"), url("b", data="$response")], {"a": OK, "b": LATER}, 200, {"y": 2}, [BODY, {"predictions": [1]}]),
        ([url("a", data="$response")], {"a": OK}, 200, {"predictions": [1]}, [BODY]),
        # Only the exact word is known: `$response.predictions` is the request.
        ([url("a"), url("b", data="$response.predictions")], {"a": OK, "b": LATER}, 200, {"y": 2}, [BODY, BODY]),
        # A Soft step that fails is passed over, but its answer is what the next one gets; the last status counts.
        ([url("a"), url("b", data="$response")], {"a": BAD, "b": LATER}, 200, {"y": 2}, [BODY, {"error": "bad"}]),
        ([url("a"), url("b", dependency="Soft")], {"a": OK, "b": BAD}, 422, {"error": "bad"}, [BODY, BODY]),
        # A Hard one ends it with its own answer and status.
        ([url("a", dependency="Hard"), url("b")], {"a": BAD, "b": OK}, 422, {"error": "bad"}, [BODY]),
        ([url("a", dependency="Hard"), url("b")], {"a": TEXT, "b": OK}, 503, b"down", [BODY]),
        ([url("a", dependency="Hard"), url("b")], {"a": (302, {}), "b": OK}, 302, {}, [BODY]),
        # What does not answer is 500, Soft or Hard.
        ([url("a", dependency="Soft"), url("b")], {"a": GONE, "b": OK}, 500, "failed: Post a: no connection", [BODY]),
        # A condition asks the answer before it; where it does not hold, that answer is the graph's, with 200.
        ([url("a"), url("b", condition="predictions")], {"a": OK, "b": LATER}, 200, {"y": 2}, [BODY, BODY]),
        ([url("a"), url("b", condition="predictions.#(>5)")], {"a": OK}, 200, {"predictions": [1]}, [BODY]),
        ([url("a"), url("b", condition="gone"), url("c")], {"a": BAD}, 200, {"error": "bad"}, [BODY]),
        ([url("a"), url("b", condition="x")], {"a": TEXT}, 500, "failed: invalid response", [BODY]),
        ([url("a", condition="instances")], {"a": OK}, 500, "failed: invalid response", []),
        # mapPredictionsToInstances.
        (
            [url("a"), url("b", data="$response", mapPredictionsToInstances=True)],
            {"a": (200, {"predictions": [[1.5], [2]], "model_name": "a"}), "b": LATER},
            200,
            {"y": 2},
            [BODY, {"instances": [[1.5], [2]]}],
        ),
        (
            [url("a"), url("b", data="$response", mapPredictionsToInstances=True)],
            {"a": (200, {"outputs": []}), "b": LATER},
            200,
            {"y": 2},
            [BODY, {"outputs": []}],
        ),
        ([], {}, 500, "failed: node root has no steps", []),
    ],
)  # fmt: skip
def test_a_sequence_answers_as_kserve_s(
    steps: list[dict[str, Any]], services: dict[str, Any], status: int, answer: Any, asked: list[Any]
) -> None:
    got = through({"root": node("Sequence", *steps)}, services)
    assert got[:2] == (status, answer)
    assert [request for _, request in got[2]] == asked


@pytest.mark.parametrize(
    ("body", "mapped"),
    [
        (b'{"predictions": [1, 2]}', b'{"instances":[1,2]}'),
        (b'{"predictions": [1], "instances": [9]}', b'{"instances":[1]}'),
        (b'{"predictions": []}', None),
        (b'{"predictions": {"a": 1}}', None),
        (b'{"predictions": [1], "instances": 3}', None),
        (b"[1]", None),
        (b"no", None),
    ],
)
def test_predictions_become_instances_only_where_the_body_is_a_v1_answer(body: bytes, mapped: bytes | None) -> None:
    assert map_predictions(body) == (body if mapped is None else mapped)


@pytest.mark.parametrize(
    ("body", "status", "called"),
    [
        ({"modelId": "1"}, 200, ["one"]),
        ({"modelId": "2"}, 200, ["two"]),
        ({"modelId": "3"}, 404, []),
        ({"modelId": "1", "instances": [{"x": 11}]}, 200, ["one"]),  # the first that holds
        ({"instances": [{"x": 11}]}, 200, ["three"]),
        (b"no JSON", 404, []),
        (b"", 404, []),
    ],
)
def test_a_switch_takes_the_first_condition_that_holds(body: Any, status: int, called: list[str]) -> None:
    nodes = {
        "root": node(
            "Switch",
            url("one", condition='[@this].#(modelId=="1")'),
            url("two", condition='[@this].#(modelId=="2")'),
            url("three", condition="instances.#(x>10)"),
            url("never"),
        )
    }
    got = through(nodes, dict.fromkeys(["one", "two", "three"], OK), body)
    assert (got[0], [name for name, _ in got[2]]) == (status, called)
    if status == 404:
        assert got[1] == "failed: None of the routes matched with the switch condition"


def test_a_switch_without_a_match_is_404_at_the_root_and_500_below_it() -> None:
    switch = node("Switch", url("a", condition="x"))
    assert through({"root": switch}, {})[0] == 404
    assert through({"root": node("Sequence", {"nodeName": "inner"}), "inner": switch}, {})[0] == 500


@pytest.mark.parametrize(("kind", "more"), [("Switch", {"condition": "instances"}), ("Splitter", {"weight": 100})])
@pytest.mark.parametrize("dependency", ["Soft", "Hard", ""])
def test_switches_and_splitters_hand_on_what_their_step_answers(
    kind: str, more: dict[str, Any], dependency: str
) -> None:
    step = url("a", dependency=dependency, **more)
    assert through({"root": node(kind, step)}, {"a": BAD})[:2] == (422, {"error": "bad"})
    assert through({"root": node(kind, step)}, {"a": TEXT})[:2] == (503, b"down")
    assert through({"root": node(kind, step)}, {"a": GONE})[0] == 500


@pytest.mark.parametrize(("pick", "called"), [(0, "a"), (19, "a"), (20, "b"), (99, "b")])
def test_a_splitter_draws_by_weight(pick: int, called: str) -> None:
    steps = [url("a", weight=20), url("zero", weight=0), url("b", weight=80)]
    got = through({"root": node("Splitter", *steps)}, {"a": OK, "b": OK}, pick=pick)
    assert [name for name, _ in got[2]] == [called]


def test_a_splitter_that_draws_nothing_is_500() -> None:
    got = through({"root": node("Splitter", url("a", weight=20))}, {"a": OK}, pick=50)
    assert got[:2] == (500, "failed: no route was selected by the splitter")


@pytest.mark.parametrize(
    ("steps", "services", "status", "answer"),
    [
        ([url("a", name="first"), url("b")], {"a": OK, "b": LATER}, 200, {"first": {"predictions": [1]}, "1": {"y": 2}}),
        ([url("a", name="x"), url("b", name="y")], {"a": OK, "b": BAD}, 200, {"x": OK[1], "y": {"error": "bad"}}),
        ([url("a"), url("b", dependency="Hard")], {"a": OK, "b": BAD}, 422, {"error": "bad"}),
        # The first Hard one that fails, in order, is the answer.
        ([url("a", dependency="Hard"), url("b", dependency="Hard")], {"a": BAD, "b": (500, {})}, 422, {"error": "bad"}),
        ([url("a"), url("b")], {"a": OK, "b": (200, None)}, 200, {"0": OK[1], "1": None}),
        # JSON where there is none, or no object, is 500 also at a Soft step; so is a service that does not answer.
        ([url("a"), url("b", dependency="Soft")], {"a": OK, "b": TEXT}, 500, "failed: step 1 answered 503 and no JSON"),
        ([url("a"), url("b")], {"a": OK, "b": (200, [1])}, 500, "failed: step 1 answered a list"),
        ([url("a"), url("b")], {"a": OK, "b": GONE}, 500, "failed: Post b: no connection"),
        ([], {}, 200, {}),
    ],
)  # fmt: skip
def test_an_ensemble_merges_by_name_or_index(
    steps: list[dict[str, Any]], services: dict[str, Any], status: int, answer: Any
) -> None:
    got = through({"root": node("Ensemble", *steps)}, services)
    assert got[0] == status
    assert got[1].startswith(answer) if isinstance(answer, str) else got[1] == answer
    assert all(request == BODY for _, request in got[2])


def test_an_ensemble_keeps_every_digit_of_what_its_steps_answer() -> None:
    raw = b'{"id": 9007199254740993, "y": 1.0}'
    steps = parse_nodes({"root": node("Ensemble", url("a"))})

    async def call(_url: str, _body: bytes) -> StepAnswer:
        return StepAnswer(200, raw)

    answer = asyncio.run(GraphExecution(steps, Recorded(), pick=int).run(b"{}", call))
    assert answer.body == b'{"0":' + raw + b"}"


def test_steps_of_an_ensemble_run_at_the_same_time_and_are_cancelled_when_nobody_waits() -> None:
    nodes = parse_nodes({"root": node("Ensemble", url("slow"), url("bad"), url("never"))})

    async def main() -> None:
        started, cancelled = [], []
        all_started = asyncio.Event()

        async def call(name: str, _body: bytes) -> StepAnswer:
            started.append(name)
            if len(started) == 3:
                all_started.set()
            await all_started.wait()
            if name == "bad":
                raise GraphFailed(500, "bad")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(name)
                raise
            raise AssertionError

        with pytest.raises(GraphFailed, match="bad"):
            await GraphExecution(nodes, Recorded(), pick=int).run(b"{}", call)
        assert sorted(cancelled) == ["never", "slow"]

    asyncio.run(main())


def test_nodes_lead_to_nodes_and_each_is_recorded_with_its_steps() -> None:
    nodes = {
        "root": node("Sequence", url("a", name="pre"), {"nodeName": "both", "data": "$response", "dependency": "Hard"}),
        "both": node("Ensemble", url("b", name="x"), {"nodeName": "pick"}),
        "pick": node("Splitter", url("c", weight=100)),
    }
    status, answer, calls, rows = through(nodes, {"a": (200, {"v": 1}), "b": OK, "c": BAD})
    assert (status, answer) == (200, {"x": OK[1], "1": {"error": "bad"}})
    assert sorted(name for name, _ in calls) == ["a", "b", "c"]
    assert [request for _, request in calls] == [BODY, {"v": 1}, {"v": 1}]
    assert sorted(rows) == [
        ("both", "", False),
        ("both", "1", True),
        ("both", "x", False),
        ("pick", "", True),
        ("pick", "0", True),
        ("root", "", False),
        ("root", "1", False),
        ("root", "pre", False),
    ]
    assert through({"root": node("Sequence", {"nodeName": "nowhere"})}, {})[:2] == (
        500,
        "failed: invalid route type: none of node nowhere",
    )
