"""The mutation tester's own rules: what it changes, which tests it asks, and that judged mutants are still there."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import serinus

pytest.importorskip("cosmic_ray", reason="make mutants installs it")

from mutants import judging, mutations, rooms  # once it is known to be there

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''\
"""Docstring of 1."""

from __future__ import annotations


def clamp(value: int | None, *, most: int = 5) -> int | None:
    """Never 7."""
    if value is None or value > most:
        log("beyond")
        return most
    return value
'''


@pytest.mark.slow  # reads a module some dozen times
def test_a_sample_is_the_same_for_the_same_seed_and_in_the_order_of_the_lines():
    first, again = mutations.sample(SOURCE, 6, 3), mutations.sample(SOURCE, 6, 3)
    assert first == again
    assert len(first) == 6
    assert [each.line for each in first] == sorted(each.line for each in first)
    assert mutations.sample(SOURCE, 6, 4) != first


@pytest.mark.slow  # compiles a module hundreds of times
def test_every_mutation_runs_otherwise_and_none_touches_annotations_or_docstrings():
    found = list(mutations.mutations_of(SOURCE))
    assert {each.line for each in found} == {6, 8, 9}
    for each in found:
        assert each.source != SOURCE
        assert ast.parse(each.source)
        assert "int | None" in each.source
        assert "Never 7" in each.source
    assert {each.operator for each in found} >= {"AddNot", "NumberReplacer", "ReplaceOrWithAnd", "RemoveStatement"}


def test_how_a_parameter_is_given_is_left_alone_and_its_default_is_not():
    found = {each.now for each in mutations.mutations_of("def f(a, b=1, *, c=2, d=3):\n    return a\n")}
    assert not any("/" in now for now in found)
    for changed in ("b= 2", "c= 3", "d= 4"):
        assert any(changed in now for now in found), (changed, found)


def test_what_the_compiler_warns_of_is_left_out():
    found = {each.now for each in mutations.mutations_of('flag = kind == "http"\nother = kind == name\n')}
    assert "other = kind is not name" in found
    assert 'flag = kind != "http"' in found
    assert not any(now.startswith("flag") and " is " in now for now in found)


def test_the_operator_of_ours_does_what_its_examples_say():
    for example in mutations.RemoveStatement.examples():
        assert (
            mutations.MutationVisitor.mutate_code(example.pre_mutation_code, mutations.RemoveStatement(), 0)
            == example.post_mutation_code
        )


@pytest.mark.parametrize(
    ("line", "lines"), [(6, range(6, 7)), (8, range(8, 9)), (9, range(9, 10)), (11, range(11, 12)), (1, range(1, 2))]
)
def test_a_line_belongs_to_the_innermost_statement_or_the_header_of_one(line: int, lines: range):
    assert rooms.statement_lines(ast.parse(SOURCE.replace('    """Never 7."""\n', "    pass\n")), line) == lines


@pytest.mark.parametrize(
    ("module", "room"),
    [
        ("serinus.dataplane.plane", "tests/dataplane/test_plane.py"),
        ("serinus.dataplane.joining.decision", "tests/joining/test_decision.py"),
        ("serinus.server.rest.v2", "tests/rest/test_errors.py"),
        ("serinus.server.lifecycle", "tests/serve/test_process.py"),
        ("serinus.local.plan.planner", "tests/local/test_plan.py"),
        ("fraud_features.store", "tests/fraud_features/test_store.py"),
    ],
)
def test_a_module_is_asked_of_its_own_room(module: str, room: str):
    found = rooms.Module(module)
    assert found.path(ROOT).is_file()
    assert room in found.test_files(ROOT)


def test_every_room_that_is_named_has_modules_and_tests():
    packages = {each.name for each in pkgutil.walk_packages(serinus.__path__, "serinus.")}
    for prefix in rooms._ROOMS:
        assert prefix in packages
        assert rooms.Module(prefix).test_files(ROOT)
    with pytest.raises(rooms.UnknownModule, match=r"no module 'serinus\.nobody'"):
        rooms.Module("serinus.nobody").path(ROOT)
    with pytest.raises(rooms.UnknownModule, match=r"no tests of 'nobody\.x'"):
        rooms.Module("nobody.x").test_files(ROOT)


def test_what_was_judged_is_still_in_its_module_and_has_a_reason():
    for entry in judging.tomllib.loads(judging.FILE.read_text())["equivalent"]:
        source = " ".join(rooms.Module(entry["module"]).path(ROOT).read_text().split())
        assert " ".join(entry["was"].split()) in source, entry
        assert entry["now"] != entry["was"]
        assert len(entry["reason"]) > 10


@pytest.mark.slow
def test_a_run_prints_what_it_killed_and_leaves_nothing_behind(tmp_path: Path):
    module = "recommender_features.evaluation"  # its room is one file of tests
    path = rooms.Module(module).path(ROOT)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "mutants", module, "--sample", "1", "--quick", "--jobs", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert f"{module}: sampled 1" in done.stdout, done.stderr
    assert done.returncode in (0, 1)
    assert path.read_bytes() == before
    assert list(tmp_path.glob("serinus-mutants-*")) == []
