"""A run from its first look to its end: traffic is moved on evidence alone, and whoever comes after a crash goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from canary_world import POLICY, Crash, World, crash, world
from kubernetes_server import service_object
from representative import every
from serinus.canary.policy import parse_policy
from serinus.canary.replay import Replay
from serinus.canary.rollout.controller import Busy
from serinus.canary.targets.target import TargetFailed


@pytest.mark.parametrize("mode", ["Knative", "Standard"])
def test_a_good_canary_goes_up_the_steps_and_is_promoted(tmp_path: Path, mode: str):
    with world(tmp_path, mode, bad=0.005) as made:
        ending = made.run()
        assert ending.kind == "promoted"
        assert made.moves == [10, 50, None]
        assert made.told("problem") == []
        spec = made.server.service()["spec"]
        assert "canary" not in spec
        assert "canaryTrafficPercent" not in spec["predictor"]
        assert spec["predictor"]["model"]["storageUri"] == "gs://b/v2"
        assert "/api/v1/namespaces/default/configmaps/m-serinus-canary" not in made.server.objects


@pytest.mark.parametrize("mode", ["Knative", "Standard"])
def test_a_bad_canary_is_rolled_back_at_the_first_step(tmp_path: Path, mode: str):
    with world(tmp_path, mode, bad=0.2) as made:
        ending = made.run()
        assert ending.kind == "rolled back"
        assert made.moves == [10, None]
        assert made.share() == 0
        assert ending.decision is not None
        assert ending.decision.metric == "errors"


def test_the_looks_of_a_run_are_judged_alike_by_replay(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        ending = made.run()
        path = tmp_path / "runs" / "m.looks.jsonl"
        replay = Replay(parse_policy(POLICY), "looks")
        (decision,) = replay.final_decisions(path.read_bytes().splitlines())
        replay.raise_problems()
        assert ending.decision is not None
        assert decision.as_json() == ending.decision.as_json()


def test_counts_from_before_the_run_and_between_two_splits_are_left_out(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        made.run()
        looks = [json.loads(line) for line in (tmp_path / "runs" / "m.looks.jsonl").read_text().splitlines()]
        first, last = looks[0], looks[-1]
        assert (first["percent"], first["canary"]["requests"], first["stable"]["requests"]) == (10, 300, 2700)
        by_percent = {look["percent"]: sum(1 for each in looks if each["percent"] == look["percent"]) for look in looks}
        expected = sum(round(3000 * percent / 100) * count for percent, count in by_percent.items())
        assert last["canary"]["requests"] == expected


@pytest.mark.parametrize(
    ("breakage", "said"),
    [
        (lambda made: made.canary.answers.clear(), "no pod of the canary arm"),
        (lambda made: made.stable.answers.update({"/metrics": "<html>"}), "no model"),
        (lambda made: made.server.pods.clear(), "no pod of the stable arm"),
        (lambda made: made.counts.update({"canary": [-200, 0]}), "went back"),
    ],
    ids=["canary silent", "stable answers html", "no pods", "counter back"],
)
def test_a_look_that_is_not_sure_moves_nothing(tmp_path: Path, breakage: Callable[[World], None], said: str):
    with world(tmp_path, bad=0.005) as made:
        pods = list(made.server.pods)

        def broken() -> None:
            made.publish()
            breakage(made)
            made.publish = lambda: None  # type: ignore[method-assign] # pages stay broken

        if said == "went back":
            broken = lambda: breakage(made)  # noqa: E731
        made.on_sleep = [lambda: None, broken]
        ending = made.run(for_s=300.0)
        assert ending.kind == ("undecided" if said != "went back" else "promoted")
        assert any(said in problem for problem in made.told("problem"))
        if said != "went back":
            assert made.moves == [10]
            assert made.share() == 10
            looks = (tmp_path / "runs" / "m.looks.jsonl").read_text().splitlines()
            assert len(looks) == 1
        assert pods


def test_an_arm_without_traffic_is_told_and_moves_nothing(tmp_path: Path):
    with world(tmp_path, bad=0.005, requests=0) as made:
        ending = made.run(for_s=200.0)
        assert ending.kind == "undecided"
        assert made.moves == [10]
        assert "no request reached the canary arm since the last look" in made.told("note")
        assert "traffic stays at 10 %" in ending.words


def test_a_canary_that_is_not_ready_is_not_judged(tmp_path: Path):
    with world(tmp_path, "Standard", bad=0.005) as made:
        made.server.ready = False
        made.server.reconcile()
        ending = made.run(for_s=200.0, settle_s=5.0)
        assert ending.kind == "undecided"
        assert made.moves == [10]
        assert "the canary m-v2-predictor is not ready" in made.told("problem")


@pytest.mark.parametrize("what", ["percentage", "version", "canary gone"])
def test_an_edit_by_somebody_else_ends_the_run_and_nothing_is_touched(tmp_path: Path, what: str):
    with world(tmp_path, bad=0.005) as made:
        predictor = dict(service_object(uri="gs://b/v2")["spec"]["predictor"])
        edits = {
            "percentage": {**predictor, "canaryTrafficPercent": 33},
            "version": {**service_object(uri="gs://b/v3")["spec"]["predictor"], "canaryTrafficPercent": 10},
            "canary gone": predictor,
        }
        made.on_sleep = [lambda: None, lambda: made.server.edit(predictor=edits[what])]
        ending = made.run()
        assert ending.kind == "changed"
        assert "was changed by somebody else" in ending.words
        assert made.server.service()["spec"]["predictor"] == edits[what]


def recreate(made: World) -> None:
    made.server.delete("/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices/m")
    made.server.uid = "u-2"
    made.server.put(service_object())
    made.server.put(service_object(uri="gs://b/v2", canaryTrafficPercent=10))


def test_a_service_that_is_deleted_and_created_again_amid_a_run_is_another_one(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        made.on_sleep = [lambda: None, lambda: recreate(made)]
        ending = made.run()
        assert ending.kind == "changed"
        assert "was deleted and created again by somebody else (its uid was u-1, and is u-2)" in ending.words
        assert made.moves == [10]
        assert made.server.service()["spec"]["predictor"]["canaryTrafficPercent"] == 10


def test_a_run_of_a_service_that_was_created_again_has_nothing_of_the_looks_before(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        made.on_sleep = [lambda: None] * 3 + [crash]
        with pytest.raises(Crash):
            made.run()
        recreate(made)
        made.now += 600
        made.events.clear()
        assert made.run().kind == "promoted"
        assert any("was deleted and created again since its record was kept" in note for note in made.told("note"))
        assert not any("the run is resumed" in note for note in made.told("note"))


def test_a_service_that_is_deleted_amid_a_run_ends_it(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:

        def delete() -> None:
            made.server.delete("/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices/m")
            made.share = lambda: 10  # type: ignore[method-assign] # pods answer on for a while

        made.on_sleep = [lambda: None, delete]
        ending = made.run()
        assert ending.kind == "changed"
        assert (
            "somebody else has deleted the service: there is no InferenceService m in namespace default" in ending.words
        )
        assert made.moves == [10]


@pytest.mark.parametrize("mode", ["Knative", "Standard"])
def test_a_service_whose_canary_has_more_than_the_first_step_stays_there_and_goes_on_to_the_next(
    tmp_path: Path, mode: str
):
    with world(tmp_path, mode, bad=0.005, requests=700) as made:
        spec = made.server.service()["spec"]
        if mode == "Knative":
            made.server.edit(predictor={**spec["predictor"], "canaryTrafficPercent": 30})
        else:
            made.server.edit(canary=[{**spec["canary"][0], "trafficPercent": 30}])
        assert made.run().kind == "promoted"
        assert made.moves == [50, None]


@pytest.mark.parametrize("answer", ["", "not a page", None], ids=["empty", "nonsense", "down"])
def test_a_source_that_is_down_for_three_looks_and_back_again_loses_nothing(tmp_path: Path, answer: str | None):
    with world(tmp_path, bad=0.005) as made:
        publish = made.publish

        def down() -> None:
            made.publish = lambda: None  # type: ignore[method-assign] # what it answers stays so
            for arm in (made.stable, made.canary):
                if answer is None:
                    arm.answers.clear()
                else:
                    arm.answers["/metrics"] = answer

        def back() -> None:
            made.publish = publish  # type: ignore[method-assign]

        made.on_sleep = [lambda: None, down, lambda: None, lambda: None, back]
        assert made.run().kind == "promoted"
        assert len(made.told("problem")) >= 3
        looks = [json.loads(line) for line in (tmp_path / "runs" / "m.looks.jsonl").read_text().splitlines()]
        # What was counted meanwhile is in the first look afterwards.
        assert [look["canary"]["requests"] for look in looks[:2]] == [300, 1500]


@pytest.mark.parametrize("by_s", [45.0, 100_000.0])
def test_a_clock_that_is_set_back_moves_nothing_too_early_and_shuts_nobody_out(tmp_path: Path, by_s: float):
    with world(tmp_path, bad=0.005) as made:

        def set_back() -> None:
            made.now -= by_s

        made.on_sleep = [lambda: None, set_back, lambda: None, crash]
        with pytest.raises(Crash):
            made.run()
        looks = [json.loads(line) for line in (tmp_path / "runs" / "m.looks.jsonl").read_text().splitlines()]
        seconds = [look["seconds"] for look in looks]
        assert seconds == sorted(seconds)
        made.now += 600 if by_s < 1000 else -600
        assert made.run().kind == "promoted"


def test_the_maximum_without_evidence_holds_or_rolls_back_as_the_policy_says(tmp_path: Path):
    for then, kind in (("hold", "undecided"), ("rollback", "rolled back")):
        with world(tmp_path / then, bad=0.005, requests=20) as made:
            policy = POLICY.replace("{seconds: 3600, then: hold}", f"{{seconds: 300, then: {then}}}")
            ending = made.controller(policy).run()
            assert ending.kind == kind
            assert made.share() == (10 if kind == "undecided" else 0)


@pytest.mark.parametrize("files", ["kept", "lost"])
def test_a_controller_that_crashed_is_followed_by_one_that_goes_on(tmp_path: Path, files: str):
    with world(tmp_path, bad=0.005) as made:
        made.on_sleep = [lambda: None] * 3 + [crash]
        with pytest.raises(Crash):
            made.run()
        reached = made.share()
        before = len(made.told("look"))
        assert before >= 3
        with pytest.raises(Busy, match="drives this canary and was there"):
            made.run(files="runs" if files == "kept" else "elsewhere")
        made.now += 600
        made.events.clear()
        ending = made.run(files="runs" if files == "kept" else "elsewhere")
        assert ending.kind == "promoted"
        assert any("the run is resumed with" in note for note in made.told("note"))
        assert all(move is None or move > reached for move in made.moves)
        assert len(made.told("look")) < 40


@pytest.mark.parametrize("mode", every(2, ["Knative", "Standard"]))
@pytest.mark.parametrize("bad", [0.005, 0.2], ids=["promotion", "rollback"])
@pytest.mark.parametrize("when", every(2, ["before", "after"]))
def test_a_crash_amid_a_promotion_or_rollback_leaves_what_the_next_one_ends(
    tmp_path: Path, mode: str, bad: float, when: str
):
    with world(tmp_path, mode, bad=bad) as made:
        controller = made.controller()
        change = controller._target.change

        def crashing(action: Any, percent: int, seen: Any) -> Any:
            if action == "percent":
                return change(action, percent, seen)
            if when == "after":
                change(action, percent, seen)
            raise Crash

        controller._target.change = crashing  # type: ignore[method-assign] # the worst moment
        with pytest.raises(Crash):
            controller.run()
        made.now += 600
        ending = made.run()
        assert ending.kind == ("promoted" if bad < 0.1 else "rolled back")
        assert "/api/v1/namespaces/default/configmaps/m-serinus-canary" not in made.server.objects
        assert made.share() in (0, 100)
        uri = made.server.service()["spec"]["predictor"]["model"]["storageUri"]
        if mode == "Standard":
            assert uri == ("gs://b/v2" if bad < 0.1 else "gs://b/v1")
            assert "canary" not in made.server.service()["spec"]


def test_an_image_only_version_is_promoted_in_two_changes(tmp_path: Path):
    with world(tmp_path, "Standard", bad=0.005, model={"storageUri": "gs://b/v1", "image": "r/x:2"}) as made:
        assert made.run().kind == "promoted"
        assert made.moves == [10, 50, None, None]
        spec = made.server.service()["spec"]
        assert (spec["predictor"]["model"]["image"], "name" in spec["predictor"], "canary" in spec) == (
            "r/x:2",
            False,
            False,
        )


def test_the_old_version_is_kept_warm_for_a_while_where_that_is_possible(tmp_path: Path):
    with world(tmp_path, "Standard", bad=0.005, predictor={"name": "v1"}) as made:
        entries = []
        made.on_sleep = []
        controller = made.controller(warm_s=900.0)
        sleep = controller._sleep

        def watched(seconds: float) -> None:
            if seconds == 900.0:
                entries.extend(made.server.service()["spec"]["canary"])
            sleep(seconds)

        controller._sleep = watched
        assert controller.run().kind == "promoted"
        assert [(each["predictor"]["name"], each["trafficPercent"]) for each in entries] == [("v1", 0)]
        assert "canary" not in made.server.service()["spec"]
    with world(tmp_path / "knative", bad=0.005) as made:
        assert made.run(warm_s=900.0).kind == "promoted"
        assert "in mode Knative the old version is not kept warm after a promotion" in made.told("note")


@pytest.mark.parametrize(
    ("bad", "verdict", "patch"),
    [
        (0.005, "advance", [{"op": "replace", "path": "/spec/predictor/canaryTrafficPercent", "value": 50}]),
        (0.2, "rollback", [{"op": "replace", "path": "/spec/predictor/canaryTrafficPercent", "value": 0}]),
    ],
)
def test_a_run_that_only_decides_changes_nothing_and_gives_the_patch(
    tmp_path: Path, bad: float, verdict: str, patch: list[dict[str, Any]]
):
    with world(tmp_path, bad=bad) as made:
        made.server.put(service_object(uri="gs://b/v2", canaryTrafficPercent=10))
        objects = json.dumps(made.server.objects, sort_keys=True)
        ending = made.run(moves=False)
        assert ending.kind == "verdict"
        assert ending.decision is not None
        assert (ending.decision.decision, list(ending.patch)) == (verdict, patch)
        assert json.dumps(made.server.objects, sort_keys=True) == objects
        assert made.server.writes == []


def test_a_run_that_only_decides_goes_on_with_the_evidence_of_the_one_before(tmp_path: Path):
    with world(tmp_path, bad=0.005, requests=100) as made:
        made.server.put(service_object(uri="gs://b/v2", canaryTrafficPercent=10))
        assert made.run(moves=False, for_s=100.0).kind == "undecided"
        first = len((tmp_path / "runs" / "m.looks.jsonl").read_text().splitlines())
        assert made.run(moves=False, for_s=300.0).kind == "undecided"
        looks = [json.loads(line) for line in (tmp_path / "runs" / "m.looks.jsonl").read_text().splitlines()]
        assert len(looks) > first
        assert [look["canary"]["requests"] for look in looks] == [10 * (index + 1) for index in range(len(looks))]


def test_nothing_begins_where_there_is_nothing_to_move(tmp_path: Path):
    with world(tmp_path) as made:
        made.server.put(service_object(uri="gs://b/v2"))
        with pytest.raises(TargetFailed, match="already has all traffic"):
            made.run()
        assert made.server.writes == []


@pytest.mark.slow
@pytest.mark.parametrize("failures", [[503], [0], [503, 0, 503], [0, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("at", every(2, [0, 1, 2, 3]))
def test_a_server_that_fails_or_whose_answers_are_lost_changes_nothing_of_the_run(
    tmp_path: Path, failures: list[int], at: int
):
    with world(tmp_path, bad=0.005) as made:
        made.on_sleep = [lambda: None] * at + [lambda: made.server.fail_next.extend(failures)]
        assert made.run().kind == "promoted"
        assert made.share() == 100
        assert [move for move in made.moves if move is not None] == [10, 50]
        assert made.server.fail_next == []


@pytest.mark.parametrize("crashes", [False, True], ids=["in one go", "after a crash"])
def test_a_rollback_in_knative_mode_describes_the_old_version_again_and_the_bad_one_gets_nothing_meanwhile(
    tmp_path: Path, crashes: bool
):
    with world(tmp_path, bad=0.3, becomes_ready=True) as made:
        made.old_predictor = service_object()["spec"]["predictor"]
        controller = made.controller()
        change = controller._target.change

        def slow(action: Any, percent: int, seen: Any) -> Any:
            if action == "restore":
                made.server.ready = False  # pods of the restored revision take a while
            done = change(action, percent, seen)
            if action == "restore" and crashes:
                raise Crash
            return done

        controller._target.change = slow  # type: ignore[method-assign] # a moment that matters
        if crashes:
            with pytest.raises(Crash):
                controller.run()
            made.now += 600
            assert made.run().kind == "rolled back"
        else:
            assert controller.run().kind == "rolled back"
        assert made.server.service()["spec"]["predictor"] == made.old_predictor
        status = made.server.service()["status"]["components"]["predictor"]
        assert [(each["revisionName"], each["percent"]) for each in status["traffic"]] == [("m-predictor-00003", 100)]
        if not crashes:
            assert set(made.shares) == {("m-predictor-00001", 100)}


def test_an_edit_while_a_step_comes_into_force_ends_the_run(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        controller = made.controller()
        settled = controller._target.is_settled
        edited = {**service_object(uri="gs://b/v2")["spec"]["predictor"], "canaryTrafficPercent": 66}

        def late(*arguments: Any) -> bool:
            done = settled(*arguments)
            made.server.edit(predictor=edited)
            return done

        controller._target.is_settled = late  # type: ignore[method-assign] # an edit at the worst moment
        ending = controller.run()
        assert ending.kind == "changed"
        assert made.server.service()["spec"]["predictor"] == edited


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_run_that_is_interrupted_leaves_traffic_as_it_is_and_the_next_may_go_on_at_once(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        made.on_sleep = [lambda: None, interrupt]
        controller = made.controller()
        with pytest.raises(KeyboardInterrupt):
            controller.run()
        controller.release()
        assert made.share() == 10
        assert made.run().kind == "promoted"
        assert any("is resumed with 1 looks" in note for note in made.told("note"))


def test_a_line_that_a_crash_has_cut_off_is_in_the_way_of_no_later_run(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        made.on_sleep = [lambda: None, crash]
        with pytest.raises(Crash):
            made.run()
        for kind in ("looks", "events"):
            path = tmp_path / "runs" / f"m.{kind}.jsonl"
            path.write_bytes(path.read_bytes()[:-20])
        made.now += 600
        made.on_sleep = [lambda: None, crash]
        with pytest.raises(Crash):
            made.run()
        made.now += 600
        assert made.run().kind == "promoted"
        for line in (tmp_path / "runs" / "m.looks.jsonl").read_bytes().splitlines():
            json.loads(line)
