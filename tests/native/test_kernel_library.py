"""Opening the library of kernels, and doing without."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from serinus.native import build, library
from serinus.native import kernel_library as loader


def test_the_library_is_built():
    assert library() is not None


@pytest.mark.parametrize("abi", [1, None], ids=["other-abi", "symbol-missing"])
def test_a_stale_library_is_refused_whole_with_the_command_that_mends_it(
    abi: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    try:
        command = build.compiler()
    except build.CompilerMissing:
        pytest.skip("no C compiler")
    source, stale = tmp_path / "stale.c", tmp_path / "stale.so"
    lines = [f"int serinus_abi(void) {{ return {loader.ABI if abi is None else abi}; }}"]
    lines += [f"void {name}(void) {{}}" for name in loader.SYMBOLS[1:]]
    source.write_text("\n".join(lines) + "\n")
    subprocess.run([*command, "-shared", "-fPIC", "-o", str(stale), str(source)], check=True)
    monkeypatch.setattr(loader, "library_path", lambda: stale)
    assert loader.library.__wrapped__() is None
    assert "python -m serinus.native.build" in caplog.text
    assert (f"of version 1, this code wants {loader.ABI}" if abi else f"lack {loader.SYMBOLS[0]};") in caplog.text


def test_a_library_for_another_machine_is_left_alone_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(b"\x7fELF of some other machine")
    monkeypatch.setattr(loader, "library_path", lambda: foreign)
    assert loader.library.__wrapped__() is None
    assert "do not load here" in caplog.text


def test_without_the_library_the_warning_says_how_to_build_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(loader, "library_path", lambda: tmp_path / "absent.so")
    assert loader.library.__wrapped__() is None
    assert "compiled kernels are missing" in caplog.text
    assert "python -m serinus.native.build" in caplog.text
