"""`ensemble.yaml` is checked whole, with lines, and never leads to code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import ensemble_support as support
from deferred import Deferred
from serinus.errors import ConfigError

Ensemble = Deferred("ensemble_server", "Ensemble")


def problems(folder: Path, text: str) -> list[str]:
    support.write(folder, text)
    with pytest.raises(ConfigError) as caught:
        Ensemble("fraud", str(folder)).load()
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


CASES = {
    "unknown key": ("thresholds: {review: 0.4,", "thresholds: {reviw: 0.4,", 17, "reviw.*did you mean 'review'"),
    "version": ("schema_version: 1", "schema_version: 2", 1, "schema_version: is 2"),
    "missing file": ("file: xgb.ubj", "file: other.ubj", 10, "'other.ubj': no such file"),
    "file outside": ("file: xgb.ubj", "file: ../xgb.ubj", 10, "leads out of the model directory"),
    "absolute file": ("file: xgb.ubj", "file: /etc/passwd", 10, "leads out of the model directory"),
    "path as runtime": ("runtime: xgboost_server:XGBoostModel", "runtime: ./code.py", 9, "no installed package"),
    "unknown package": ("runtime: xgboost_server:XGBoostModel", "runtime: no_such_pkg:X", 8, "no_such_pkg"),
    "not a model": ("runtime: xgboost_server:XGBoostModel", "runtime: pathlib:Path", 8, "Path"),
    "unknown output": ("{score: margin}", "{score: nonsense}", 8, "'nonsense' of role 'score'.*margin"),
    "unknown tensor": ("[{tensor: features}]", "[{tensor: feature}]", 11, "'feature' is none of the inputs"),
    "optional tensor": ("[{tensor: features}]", "[{tensor: count_1d}]", 11, "optional"),
    "unknown combiner": ("name: fraud", "name: fraude", 14, "'fraude' is no entry point.*fraud"),
    "datatype": ("datatype: FP64", "datatype: FLOAT", 4, 'is "FLOAT", one of'),
    "rows not first": ("datatype: FP64, shape: [-1]", "datatype: FP64, shape: [3]", 4, "rows first"),
    "thresholds cross": ("review: 0.4, decline: 0.8", "review: 0.9, decline: 0.8", 17, "review <= decline"),
    "unknown action": ("action: decline", "action: deny", 21, 'is "deny", one of approve, review, decline'),
    "rule on bytes": (
        "rule: amount_limit, input: amount",
        "rule: amount_limit, input: terminal_id",
        20,
        "takes numbers",
    ),
    "infinite": ("limit: 1000", "limit: .inf", 20, "must be finite"),
    "text for number": ("limit: 1000", "limit: lots", 20, 'is "lots", a number was expected'),
    "member of blend": ("members: {xgb: {weight", "members: {gbt: {weight", 16, "is no member; members are xgb"),
    "no values file": ("values_file: blocked.txt", "values_file: none.txt", 21, "'none.txt': no such file"),
    "separator in code": (
        "limit: 1000, action: review",
        "limit: 1000, action: review, code: 'A;B'",
        20,
        "separates codes",
    ),
    "twice": ("schema_version: 1\n", "schema_version: 1\nschema_version: 1\n", 2, "is there twice"),
    "object tag": ("limit: 1000", "limit: !!python/object/apply:os.getcwd []", 20, "."),
    "wrong columns": (
        "shape: [-1, 4]}",
        "shape: [-1, 4], columns: [amount, hour_sin, amount_ratio_30d, km_from_last]}",
        8,
        "column 1 of 'features' is 'hour_sin' and the model was trained on 'amount_ratio_30d'",
    ),
    "anomaly of no member": (
        "rule: velocity_limit, input: count_1d, limit: 10",
        "rule: anomaly, member: encoder, limit: 10",
        19,
        r"rules\[0\].member: 'encoder' is no member; members are xgb",
    ),
    "anomaly of an input": (
        "rule: velocity_limit, input: count_1d, limit: 10",
        "rule: anomaly, input: count_1d, member: xgb, limit: 10",
        19,
        "input: unknown key; known are rule, action, code, floor, member, limit",
    ),
    "anomaly without a limit": (
        "rule: velocity_limit, input: count_1d, limit: 10",
        "rule: anomaly, member: xgb",
        19,
        "'limit' is missing",
    ),
    "member on another rule": ("input: amount, limit", "input: amount, member: xgb, limit", 20, "member: unknown key"),
    "no threads": ("file: xgb.ubj", "file: xgb.ubj\n    threads: 0", 11, "threads: is 0; at least 1"),
    "wrong width": ("shape: [-1, 4]}", "shape: [-1, 5]}", 8, "5 columns, the model takes 4"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_mistake_is_reported_with_its_line(tmp_path, case):
    old, new, line, message = case
    assert old in support.TEXT
    found = problems(tmp_path, support.TEXT.replace(old, new, 1))
    assert any(problem.startswith(f"ensemble.yaml:{line}: ") and re.search(message, problem) for problem in found), (
        found
    )


def test_all_mistakes_are_reported_together_in_the_order_of_their_lines(tmp_path):
    text = support.TEXT
    for name in ("version", "missing file", "thresholds cross", "unknown action", "infinite"):
        text = text.replace(CASES[name][0], CASES[name][1], 1)
    found = problems(tmp_path, text)
    assert [int(problem.split(":")[1]) for problem in found] == [1, 10, 17, 20, 21]


def test_a_file_that_is_no_yaml_says_where(tmp_path):
    assert problems(tmp_path, "inputs: [\n  {a: 1\n")[0].startswith("ensemble.yaml:3: not YAML")
    assert "a mapping" in problems(tmp_path, "- a\n")[0]
    assert "a mapping" in problems(tmp_path, "")[0]


def test_a_link_that_leads_out_of_the_directory_is_refused(tmp_path):
    outside = support.write(tmp_path / "outside") / "xgb.ubj"
    folder = support.write(tmp_path / "model")
    (folder / "link.ubj").symlink_to(outside)
    found = problems(folder, support.TEXT.replace("file: xgb.ubj", "file: link.ubj"))
    assert "leads out of the model directory" in found[0]


def test_code_in_the_model_directory_is_never_imported(tmp_path, monkeypatch):
    support.write(tmp_path)
    (tmp_path / "evil_runtime.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    found = problems(tmp_path, support.TEXT.replace("xgboost_server:XGBoostModel", "evil_runtime:Model"))
    assert "evil_runtime" in found[0]
    assert "evil_runtime" not in sys.modules


def test_the_readme_of_the_server_shows_a_file_that_loads(tmp_path):
    readme = Path(__file__).parents[2] / "runtimes/ensemble_server/README.md"
    match = re.search(r"```yaml\n(schema_version.*?)```", readme.read_text(), re.DOTALL)
    assert match is not None
    support.write(tmp_path, match[1])
    (tmp_path / "blocked_terminals.txt").write_text("T-13\n")
    model = Ensemble("fraud", str(tmp_path))
    model.load()
    assert model.ready
    assert [spec["name"] for spec in model.get_output_types()] == ["score", "decision", "reasons"]
