"""`serinus canary replay` and `serinus canary policy`, as they are called."""

from __future__ import annotations

import codecs
import gc
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from canary_support import Rollout, Truth
from serinus.canary import replay
from serinus.canary.policy import DEFAULT_POLICY, load_policy
from serinus.canary.replay import Replay
from serinus.cli import main
from serinus.errors import ConfigError

BAD = Truth(errors=0.2, median_s=0.06)


def written(path: Path, **runs: Rollout) -> Path:
    """Looks of several runs, mixed."""
    rng = np.random.default_rng(3)
    simulated = [rollout.simulate(rng, run) for run, rollout in runs.items()]
    lines = [json.dumps(look.as_json()) for looks in zip(*simulated, strict=True) for look in looks]
    path.write_text("\n".join(lines) + "\n")
    return path


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_look_has_a_line_until_its_run_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = written(tmp_path / "looks.jsonl", good=Rollout(looks=30), bad=Rollout(looks=30, canary=BAD))
    assert main(["canary", "replay", str(file), "-o", "json"]) == 0
    decisions = lines(capsys.readouterr().out)
    assert all(list(each) == ["run", "look", "decision", "metric", "reasons", "requests_needed"] for each in decisions)
    good = [each for each in decisions if each["run"] == "good"]
    bad = [each for each in decisions if each["run"] == "bad"]
    assert [each["look"] for each in good] == list(range(1, 31))
    assert {each["decision"] for each in good} <= {"hold", "advance"}
    assert good[-1]["requests_needed"] > 0
    assert [each["decision"] for each in bad].count("rollback") == 1
    assert bad[-1]["decision"] == "rollback"
    assert bad[-1]["metric"] == "errors"
    assert bad[-1]["reasons"][0].startswith("errors: canary ")


def test_final_gives_each_run_one_line_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = written(tmp_path / "looks.jsonl", bad=Rollout(looks=30, canary=BAD), good=Rollout(looks=30))
    assert main(["canary", "replay", "--policy", str(DEFAULT_POLICY), str(file), "-o", "json", "--final"]) == 0
    final = lines(capsys.readouterr().out)
    assert [each["run"] for each in final] == ["bad", "good"]
    assert final[0]["decision"] == "rollback"
    assert final[1]["look"] == 30
    assert main(["canary", "replay", str(file), "--final"]) == 0
    assert capsys.readouterr().out.startswith(f"bad: look {final[0]['look']}: rollback\n    errors: canary ")


@pytest.mark.parametrize("together", [1, 3000, 1 << 25], ids=["a line", "some lines", "all lines"])
def test_ends_alone_are_those_of_all_looks_however_runs_are_mixed_and_told(
    together: int, monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(5)
    names = ["a", "b", "", "run", 'qu"ote', "é", "c"]
    rollouts = [Rollout(looks=40, canary=BAD if index % 2 else Truth()) for index in range(len(names))]
    lines: list[bytes] = []
    for number, looks in enumerate(zip(*[each.simulate(rng) for each in rollouts], strict=True)):
        for name, look in zip(names, looks, strict=True):
            value = {**look.as_json(), "run": name}
            # At the end of the line or at its beginning, escaped or as it is, twice (the last one counts), or left out where it is empty.
            if number % 3 == 0:
                value = {"run": name, **look.as_json()}
            text = json.dumps(value, ensure_ascii=number % 2 == 0)
            if number % 5 == 0:
                text = '{"run": "b", ' + text[1:]
            if not name and number % 5:
                text = json.dumps({key: each for key, each in value.items() if key != "run"})
            lines.append(text.encode())
    lines[3:3] = [b"{", b'{"run": "d", "seconds": 1}', b"[]"]
    monkeypatch.setattr(replay, "_TOGETHER", together)
    every, alone = Replay(load_policy(), "looks"), Replay(load_policy(), "looks")
    last = {decision.run: decision for decision in every.decisions(lines)}
    assert {decision.run: decision for decision in alone.final_decisions(lines)} == last
    assert list(last) == names
    problems = []
    for each in (every, alone):
        with pytest.raises(ConfigError) as caught:
            each.raise_problems()
        problems.append(caught.value.problems)
    assert problems[0] == problems[1]
    assert [each.partition(": ")[0] for each in problems[0]] == ["looks:4", "looks:5", "looks:6"]


def test_without_percent_no_step_is_advanced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = written(tmp_path / "looks.jsonl", a=Rollout(looks=60, says_percent=False))
    assert main(["canary", "replay", str(file), "-o", "json"]) == 0
    assert {each["decision"] for each in lines(capsys.readouterr().out)} == {"hold"}


def test_a_bad_line_ends_its_run_alone_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = written(tmp_path / "looks.jsonl", a=Rollout(looks=3), b=Rollout(looks=3))
    text = file.read_text().splitlines()
    restarted = json.loads(text[0])
    restarted["seconds"] = 12
    text[2] = json.dumps({**restarted, "canary": {**restarted["canary"], "requests": 0, "errors": 0}})
    text.append("{")
    file.write_text("\n\n".join(text))
    assert main(["canary", "replay", str(file), "-o", "json", "--final"]) == 1
    out, err = capsys.readouterr()
    assert [each["run"] for each in lines(out)] == ["b"]
    assert "looks.jsonl:5: run 'a': canary.requests: went back from " in err
    assert "looks.jsonl:13: not JSON" in err


def plain(step: int, **more: object) -> dict:
    return {
        "seconds": 60 * step,
        "percent": 10,
        "stable": {"requests": 9000 * step, "errors": 45 * step},
        "canary": {"requests": 1000 * step, "errors": 5 * step},
        **more,
    }


PACKED = {
    "plain": lambda text: text.encode(),
    "lines end as Windows ends them": lambda text: text.replace("\n", "\r\n").encode(),
    "a byte order mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
}


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_looks_are_read_however_they_were_saved(
    pack: Callable[[str], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "looks"
    file.write_bytes(pack("\n".join(json.dumps(plain(step)) for step in range(1, 9))))
    assert main(["canary", "replay", str(file), "-o", "json", "--final"]) == 0
    (final,) = lines(capsys.readouterr().out)
    assert (final["decision"], final["look"]) == ("promote", 4)
    assert gc.isenabled()


def test_half_a_gzip_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "looks.gz"
    file.write_bytes(gzip.compress(json.dumps(plain(1)).encode())[:-9])
    assert main(["canary", "replay", str(file)]) == 1
    assert "cannot be unpacked: " in capsys.readouterr().err


def test_a_look_of_an_unknown_field_ends_its_run_and_what_comes_after_the_end_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "looks.jsonl"
    looks = [plain(1, run="a"), plain(1, run="b"), plain(2, run="a", extra=1), plain(3, run="a")]
    looks += [plain(step, run="b") for step in range(2, 9)] + [plain(1, run="b", extra=1)]
    file.write_text("\n".join(map(json.dumps, looks)))
    assert main(["canary", "replay", str(file), "-o", "json", "--final"]) == 1
    out, err = capsys.readouterr()
    assert [(each["run"], each["decision"]) for each in lines(out)] == [("b", "promote")]
    assert "looks.jsonl:3: run 'a': extra: unknown" in err
    assert err.count("extra") == 1


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_a_look_is_said(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "looks.jsonl"
    file.write_text(text)
    assert main(["canary", "replay", str(file), "-o", "json", "--final"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "looks.jsonl has no look; one JSON object a line was expected" in err


HOSTILE = {
    "half a line": ('{"seconds": 60, "stable": {"requ', "not JSON"),
    "a list": ("[1, 2]", "a look is a JSON object, this is a list"),
    "NaN": ('{"seconds": 60, "stable": {"requests": NaN}}', "NaN is no JSON and no count"),
    "negative": (('"requests": 900', '"requests": -900'), "stable.requests: -900 is negative"),
    "1e18": (('"requests": 900', '"requests": 1000000000000000000'), "is more than 2^53"),
    "no double": (('"requests": 900', '"requests": 1' + "0" * 400), "not JSON: number is infinity"),
    "percent 150": (('"percent": 10', '"percent": 150'), "percent: 150 is no share of the traffic"),
    "rates": (('"requests": 900', '"requests": 900.5'), "counters were expected, not rates"),
    "more errors than requests": (('"errors": 4', '"errors": 901'), "stable.errors: 901 of 900 requests"),
    "a typo": (('"errors": 4', '"erors": 4'), "stable.erors: unknown; did you mean errors?"),
    "an arm's metric alone": (('"errors": 4, ', ""), "stable.errors: missing, though canary has it"),
    "deep": ('{"a":' * 3000 + "1" + "}" * 3000, "not JSON"),
    "not UTF-8": ("\udcff\udcfe", "not JSON"),
}


@pytest.mark.parametrize(("change", "said"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_line_that_makes_no_sense_is_said_and_decides_nothing(
    change: str | tuple[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = '{"seconds": 60, "percent": 10, "stable": {"errors": 4, "requests": 900}, "canary": {"errors": 1, "requests": 100}}'
    line = change if isinstance(change, str) else good.replace(*change)
    assert line != good
    file = tmp_path / "looks.jsonl"
    file.write_bytes(line.encode("utf-8", "surrogateescape") + b"\n")
    assert main(["canary", "replay", str(file), "-o", "json", "--final"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_a_missing_file_and_a_bad_policy_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["canary", "replay", str(tmp_path / "none.jsonl")]) == 1
    assert "a file of looks was expected" in capsys.readouterr().err
    policy = tmp_path / "policy.yaml"
    policy.write_text(DEFAULT_POLICY.read_text().replace("level: 0.05", "level: 2", 1))
    assert main(["canary", "replay", "--policy", str(policy), str(policy)]) == 1
    assert "level: is 2; a number between 0 and 1" in capsys.readouterr().err


def test_the_policy_that_is_printed_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["canary", "policy"]) == 0
    saved = tmp_path / "policy.yaml"
    saved.write_text(capsys.readouterr().out)
    assert load_policy(saved) == load_policy()


def test_the_help_shows_examples(capsys: pytest.CaptureFixture[str]):
    assert main(["canary", "replay", "--help"]) == 0
    assert "serinus canary replay looks.jsonl" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.slow  # a process
def test_a_replay_pays_for_no_clusters_targets_and_no_page():
    program = (
        "import sys; from serinus.cli import main; main(['canary', 'policy']); "
        "print([each for each in sys.modules if each.startswith(('serinus.canary.targets', 'serinus.canary.web'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
