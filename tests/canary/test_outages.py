"""What a run is about goes away: the namespace, the service amid a step, Prometheus, the local runner. Each is said, none moves traffic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from canary_world import World, world
from kubernetes_server import ISVC, Refusal
from serinus.canary.targets.target import TargetFailed, TargetGone

SERVICE = ISVC.format("default", "m")


def terminate(made: World) -> None:
    """Delete the namespace: the API server creates nothing in it any more, and the service waits for KServe's finalizer."""
    made.server.terminating.add("default")
    made.server.objects[SERVICE]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"


def end(made: World) -> None:
    """Let all that was in the namespace be gone."""
    terminate(made)
    for path in [each for each in made.server.objects if "/namespaces/default/" in each]:
        del made.server.objects[path]
    made.server.pods.clear()
    made.share = lambda: 10  # type: ignore[method-assign] # clients still have connections


def test_a_namespace_that_is_not_there_is_named(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        end(made)
        with pytest.raises(TargetGone, match=r"no InferenceService m in namespace default; name another with --namespace"):
            made.run()
        assert made.moves == []


@pytest.mark.parametrize("mode", ["Knative", "Standard"])
def test_in_a_namespace_that_is_being_deleted_no_run_begins(tmp_path: Path, mode: str):
    with world(tmp_path, mode, bad=0.005) as made:
        terminate(made)
        before = made.server.writes.copy()
        with pytest.raises(TargetGone, match=r"default/m is being deleted since 2026-01-01T00:00:00Z"):
            made.run()
        assert made.moves == []
        assert made.server.writes == before


def test_where_no_record_can_be_kept_no_run_begins(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        made.server.terminating.add("default")  # the service has not been reached yet
        with pytest.raises(TargetFailed, match=r"cannot be kept, so nothing is moved: .*403.*because it is being terminated"):
            made.run()
        assert made.moves == []
        assert made.share() == 0


@pytest.mark.parametrize("mode", ["Knative", "Standard"])
@pytest.mark.parametrize(("change", "said"), [(terminate, "is being deleted"), (end, "there is no InferenceService m")])
def test_a_namespace_that_is_deleted_amid_a_run_ends_it(
    tmp_path: Path, mode: str, change: Callable[[World], None], said: str
):
    with world(tmp_path, mode, bad=0.005) as made:
        made.on_sleep = [lambda: None, lambda: change(made)]
        ending = made.run()
        assert (ending.kind, made.moves) == ("changed", [10])
        assert said in ending.words


@pytest.mark.parametrize("change", [terminate, end])
def test_a_service_that_goes_while_a_step_comes_into_force_ends_the_run_at_once(
    tmp_path: Path, change: Callable[[World], None]
):
    with world(tmp_path, "Standard", bad=0.005) as made:
        controller = made.controller(settle_s=600.0)
        settled = controller._target.is_settled

        def gone(*arguments: Any) -> bool:
            change(made)  # after the step was written, before it is in force
            return settled(*arguments)

        controller._target.is_settled = gone  # type: ignore[method-assign]
        began = made.now
        ending = controller.run()
        assert ending.kind == "changed"
        assert "somebody else has deleted the service" in ending.words
        assert made.now - began < 60


def test_a_server_that_fails_once_after_a_step_does_not_end_the_run(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        get, left = made.server.get, [2]
        settled: list[bool] = []

        def failing(path: str, query: Any) -> Any:
            found = get(path, query)
            if path == SERVICE and made.moves and not settled:
                settled.append(True)
                return found  # the change is in force
            if path == SERVICE and settled and left[0]:
                left[0] -= 1
                raise Refusal(503, "the leader is being elected")
            return found

        made.server.get = failing  # type: ignore[method-assign]
        assert made.run().kind == "promoted"
        assert any("the leader is being elected; trying again" in each for each in made.told("problem"))
