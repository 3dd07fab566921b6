"""How a request goes through a graph: the meaning of nodes, steps, conditions and failures. No socket.

Theory of operation. `GraphExecution.run` walks the nodes from `root`; each step is another node or a call, which is given as a function. The
statuses are those of KServe's router (cmd/router/main.go, 2026-08-21): a service that answers anything is a step that has been done, and what its
status means is the node's and the dependency's to say; a service that does not answer, and JSON where there is none, end the request with 500,
also at a Soft step. A switch without a match is 404 at the root and 500 below it. Of parallel steps the first failing Hard one, in order, is the answer.
Otherwise than KServe's: what an ensemble need not wait for any more is cancelled, and its answers are merged as they came, digit by digit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from ...manifests.graphs.gjson_path import exists
from ...manifests.graphs.inference_graph import ROOT, GraphNode, GraphStep

__all__ = ["Call", "GraphExecution", "GraphFailed", "Recorder", "StepAnswer", "map_predictions", "step_label"]


class GraphFailed(Exception):
    """The graph has no answer; `status` is the router's own."""

    def __init__(self, status: int, cause: str) -> None:
        super().__init__(cause)
        self.status = status


@dataclass(frozen=True, slots=True)
class StepAnswer:
    """What a step or node answers."""

    status: int
    body: bytes

    @property
    def succeeded(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status <= 299


Call = Callable[[str, bytes], Awaitable[StepAnswer]]
"""POSTs a body to a URL; raises GraphFailed where no whole answer comes."""


class Recorder(Protocol):
    """Is told of every node and step that has ended."""

    def record(self, node: str, step: str, seconds: float, *, failed: bool) -> None:
        """Take one; `step` is empty for the node itself."""
        ...


def step_label(step: GraphStep, index: int) -> str:
    """A step's name, or its index where it has none: the key in an ensemble's answer."""
    return step.name or str(index)


class GraphExecution:
    """One graph, for many requests.

    Args:
        nodes: by name.
        recorder: told of nodes and steps.
        pick: a number from 0 to 99, for splitters.
    """

    def __init__(self, nodes: Mapping[str, GraphNode], recorder: Recorder, *, pick: Callable[[], int]) -> None:
        self._nodes = nodes
        self._recorder = recorder
        self._pick = pick
        self._routes = {
            "Sequence": self._sequence,
            "Switch": self._switch,
            "Ensemble": self._ensemble,
            "Splitter": self._splitter,
        }

    async def run(self, body: bytes, call: Call) -> StepAnswer:
        """Take a request through the graph.

        Args:
            body: the request's.
            call: calls a service, with the request's headers.

        Raises:
            GraphFailed: there is no answer but the router's own.
        """
        return await self._node(ROOT, body, call)

    async def _node(self, name: str, body: bytes, call: Call) -> StepAnswer:
        node = self._nodes.get(name, GraphNode("", ()))
        route = self._routes.get(node.kind)
        if route is None:
            raise GraphFailed(500, f"invalid route type: {node.kind or 'none'} of node {name}")
        began, failed = time.perf_counter(), True
        try:
            answer = await route(name, node, body, call)
            failed = not answer.succeeded
            return answer
        finally:
            self._recorder.record(name, "", time.perf_counter() - began, failed=failed)

    async def _step(self, name: str, index: int, step: GraphStep, body: bytes, call: Call) -> StepAnswer:
        began, failed = time.perf_counter(), True
        try:
            answer = await (self._node(step.node, body, call) if step.node else call(step.url, body))
            failed = not answer.succeeded
            return answer
        except GraphFailed as error:
            raise GraphFailed(500, str(error)) from None  # whatever failed below, above it is a 500
        finally:
            self._recorder.record(name, step_label(step, index), time.perf_counter() - began, failed=failed)

    async def _splitter(self, name: str, node: GraphNode, body: bytes, call: Call) -> StepAnswer:
        point, end = self._pick(), 0
        for index, step in enumerate(node.steps):
            end += step.weight
            if point < end:
                return await self._step(name, index, step, body, call)
        raise GraphFailed(500, "no route was selected by the splitter")

    async def _switch(self, name: str, node: GraphNode, body: bytes, call: Call) -> StepAnswer:
        document = _parsed(body)
        if not isinstance(document, _NotJson):
            for index, step in enumerate(node.steps):
                if exists(document, step.condition):
                    return await self._step(name, index, step, body, call)
        raise GraphFailed(404, "None of the routes matched with the switch condition")

    async def _sequence(self, name: str, node: GraphNode, body: bytes, call: Call) -> StepAnswer:
        answer: StepAnswer | None = None
        for index, step in enumerate(node.steps):
            request = answer.body if step.data == "$response" and answer is not None else body
            if step.maps_predictions:
                request = map_predictions(request)
            if step.condition:
                document = _parsed(answer.body if answer is not None else b"")
                if answer is None or isinstance(document, _NotJson):
                    raise GraphFailed(500, "invalid response")
                if not exists(document, step.condition):
                    return StepAnswer(200, answer.body)
            answer = await self._step(name, index, step, request, call)
            if step.is_hard and not answer.succeeded:
                return answer
        if answer is None:
            raise GraphFailed(500, f"node {name} has no steps")
        return answer

    async def _ensemble(self, name: str, node: GraphNode, body: bytes, call: Call) -> StepAnswer:
        tasks = [
            asyncio.ensure_future(self._object(name, index, step, body, call)) for index, step in enumerate(node.steps)
        ]
        merged: dict[str, orjson.Fragment] = {}
        try:
            for index, (step, task) in enumerate(zip(node.steps, tasks, strict=True)):
                answer = await _first_failure_or(task, tasks)
                if step.is_hard and not answer.succeeded:
                    return answer
                merged[step_label(step, index)] = orjson.Fragment(answer.body)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return StepAnswer(200, orjson.dumps(merged, option=orjson.OPT_SORT_KEYS))

    async def _object(self, name: str, index: int, step: GraphStep, body: bytes, call: Call) -> StepAnswer:
        """A step whose answer can be merged: a JSON object (or null)."""
        answer = await self._step(name, index, step, body, call)
        document = _parsed(answer.body)
        if isinstance(document, _NotJson):
            raise GraphFailed(
                500, f"step {step_label(step, index)} answered {answer.status} and no JSON: {document.reason}"
            )
        if document is not None and not isinstance(document, dict):
            kind = type(document).__name__
            raise GraphFailed(500, f"step {step_label(step, index)} answered a {kind}; an ensemble merges JSON objects")
        return answer


async def _first_failure_or(
    wanted: asyncio.Future[StepAnswer], tasks: Sequence[asyncio.Future[StepAnswer]]
) -> StepAnswer:
    """The wanted task's answer, unless another one fails before it has come."""
    waiting = {task for task in tasks if not task.done()} | {wanted}
    while not wanted.done():
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    return wanted.result()


def map_predictions(body: bytes) -> bytes:
    """A V1 answer as a V1 request: `predictions` become `instances`, and nothing else of it stays; other bodies are as they were."""
    document = _parsed(body)
    if not isinstance(document, dict):
        return body
    predictions, instances = document.get("predictions"), document.get("instances")
    if not isinstance(predictions, list) or not predictions or not isinstance(instances, (list, type(None))):
        return body
    return orjson.dumps({"instances": predictions})


@dataclass(frozen=True, slots=True)
class _NotJson:
    reason: str


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError as error:
        return _NotJson(str(error))
