"""What the README says can be done, can be done."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serinus.cli.main import main
from serve_support import serving

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
_COMMAND = re.compile(r"serinus canary [a-z]+|serinus [a-z]+|make bench")
_FLAG = re.compile(r"--([a-z_]+)")


@pytest.mark.slow
def test_the_python_examples_run_in_order(tmp_path: Path):
    scope: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        if "serinus.client" not in block:
            exec(compile(block, "README.md", "exec"), scope)
            continue
        # The class of the first example is what the client asks.
        (tmp_path / "doubler.py").write_text(blocks[0])
        flags = ("--class", "doubler:Doubler", "--model_name", "doubler")
        with serving(tmp_path, *flags, environment={"PYTHONPATH": str(tmp_path)}) as served:
            here = block.replace("http://127.0.0.1:8080", f"http://127.0.0.1:{served.http_port}")
            assert here != block
            exec(compile(here, "README.md", "exec"), scope)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", SHELL))))
def test_a_make_target_of_the_readme_is_there_and_in_help(target: str):
    assert re.search(rf"^{target}:.*## ", MAKEFILE, re.MULTILINE)


FLAGS = sorted(
    {
        (command, flag)
        for line in SHELL.splitlines()
        for command in _COMMAND.findall(line)[:1]
        for flag in _FLAG.findall(line)
    }
)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        pytest.param(command, flag, id=f"{command}-{flag}", marks=[pytest.mark.slow] if command == "make bench" else [])
        for command, flag in FLAGS
    ],  # the benchmark's help is asked of a process
)
def test_a_flag_of_the_readme_is_one_of_its_commands(command: str, flag: str):
    assert flag == "help" or re.search(rf"--{flag}\b".replace("_", "[-_]"), help_of(command))


@functools.cache
def help_of(command: str) -> str:
    _, _, name = command.partition(" ")
    if command != "make bench":
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
            patch.setenv("COLUMNS", "200")
            with contextlib.suppress(SystemExit):  # argparse's way of ending `serve --help`
                assert main([*name.split(), "--help"]) == 0
        return said.getvalue()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_a_link_of_the_readme_leads_somewhere(link: str):
    assert (ROOT / link).exists()


def test_make_help_lists_every_target_that_is_documented():
    listing = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0].strip("\x1b[36m") for line in listing.splitlines() if line.strip()}
    for target in ("demo", "test", "lint", "up", "bench", "images", "models"):
        assert target in listing


@pytest.mark.parametrize("folder", ["runtimes", "transformers", "inferenceservices", "manifests"])
def test_every_source_folder_is_in_the_tree_that_the_readme_draws(folder: str):
    tree = README.split("## The tree", 1)[1].split("```")[1]
    assert f"{folder}/" in tree
    if folder == "runtimes":
        for package in (path.parent.name for path in (ROOT / folder).glob("*/__init__.py")):
            assert f"{package}/" in tree


def test_an_environment_that_is_there_is_not_spoken_of():
    """`make demo` and `make up` begin with what they do; make itself would say that nothing was to be done for `.venv/.run`."""
    command = ["make", "-n", "--no-print-directory", "environment", "SERVICE=fraud"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "up to date" not in done.stdout
