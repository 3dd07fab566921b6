"""Users counted from the gateway's access log."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from depth import draws
from serinus.canary.looks import Arm
from serinus.canary.rollout.arm_sums import resume_arm
from serinus.canary.sources.gateway_keys import DistinctKeys, WithAffinityKeys
from serinus.canary.sources.source import ArmNames, Observation

NAMES = ArmNames("old", "new")


class Requests:
    """A source of counts alone."""

    def observe(self, names: ArmNames) -> Observation:
        return Observation(Arm(requests=10), Arm(requests=10))


def line(revision: str | None, key: str | None) -> str:
    return json.dumps({"revision": revision, "key": key}) + "\n"


def test_a_user_counts_once_a_request_without_a_key_each_time_and_a_testers_not_at_all(tmp_path: Path):
    log = tmp_path / "access.log"
    log.write_text(line("old", "0" * 16))
    source = WithAffinityKeys(Requests(), log)
    assert source.observe(NAMES).stable.affinity_keys is None, "nothing has been seen yet"
    with log.open("a") as file:
        for _ in range(3):
            file.writelines([line("old", f"{number:016x}") for number in range(5)])
        file.writelines([line("new", "-"), line("new", "-"), line("new", "f" * 16), line("new", None), line(None, "-")])
        file.writelines(["no JSON\n", "[]\n", line("new", "a user's name"), '{"revision": "new", "key": "00000000'])
    seen = source.observe(NAMES)
    assert (seen.stable.affinity_keys, seen.canary.affinity_keys) == (5, 3)
    assert seen.problems == ()
    with log.open("a") as file:
        file.write('00000001"}\n')
    assert source.observe(NAMES).canary.affinity_keys == 4, "a line that was cut off is read when it is whole"
    log.write_text(line("new", "2" * 16))
    assert source.observe(NAMES).canary.affinity_keys == 5, "a log that was emptied is read from its beginning"


def test_users_that_come_while_the_pods_are_asked_wait_for_the_look_that_has_their_requests(tmp_path: Path):
    log = tmp_path / "access.log"
    log.touch()

    class Busy(Requests):
        """A new user comes to each arm while it is asked."""

        asked = 0

        def observe(self, names: ArmNames) -> Observation:
            self.asked += 1
            with log.open("a") as file:
                file.writelines([line("old", f"{self.asked:016x}"), line("new", f"{self.asked:016x}")])
            return super().observe(names)

    source = WithAffinityKeys(Busy(), log)
    source.observe(NAMES)
    keys = [source.observe(NAMES).canary.affinity_keys for _ in range(3)]
    assert keys == [None, 1, 2]


def test_without_affinity_requests_are_what_is_counted(tmp_path: Path):
    log = tmp_path / "access.log"
    source = WithAffinityKeys(Requests(), log)
    (note,) = source.observe(NAMES).notes
    assert "requests are" in note
    log.write_text("")
    source.observe(NAMES)
    log.write_text(line("old", None) * 9)
    seen = source.observe(NAMES)
    assert (seen.stable.affinity_keys, seen.notes) == (None, ())


@pytest.mark.parametrize("different", [1000, 1001, 5000, draws(200_000, 40_000)])
def test_the_count_is_exact_while_all_are_kept_near_beyond_and_never_goes_back(different: int):
    draw, keys = random.Random(different), DistinctKeys(1000)  # hashes, no secret
    hashes = [draw.getrandbits(64) for _ in range(different)]
    before = 0
    for key in [*hashes, *hashes[:500]]:
        keys.add(key)
        assert keys.count >= before
        before = keys.count
    if different <= 1000:
        assert keys.count == different
    # Five standard errors of 1 / sqrt(1000).
    assert abs(keys.count / different - 1) < 5 / 1000**0.5


def test_a_resumed_run_counts_no_user_twice():
    before, since = Arm(requests=100, affinity_keys=30), Arm(requests=50, affinity_keys=40)
    assert resume_arm(before, since) == Arm(requests=150, affinity_keys=40)
    assert resume_arm(before, Arm(requests=1)) == Arm(requests=101, affinity_keys=30)
