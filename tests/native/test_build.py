"""Compiling the kernels: for users, whose compiler nobody here knows, and for these checks, which mind every warning."""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from depth import DEEP
from native_support import NATIVE
from serinus.native import build, library
from serinus.native import kernel_library as loader

ROOT = Path(__file__).resolve().parents[2]

FAILING = "#!/bin/sh\necho 'kernels.h:1: some message of the compiler' >&2\nexit 1\n"
WARNING = (
    '#!/bin/sh\necho "forest.c:1: a warning that nobody had heard of" >&2\n'
    'case " $* " in *" -Werror "*) exit 1;; esac\nexec gcc "$@" -O0\n'
)
QUICK = '#!/bin/sh\nexec gcc "$@" -O0\n'
"""A compiler that takes a fifth of the time, where it is not the code that is looked at."""

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.slow
@needs_gcc
def test_a_warning_of_the_compiler_is_shown_and_stops_nobody(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("CC", script(tmp_path / "cc", WARNING))
    made = build.build(tmp_path / "kernels.so")
    assert loader.Library(made).quick.serinus_abi() == loader.ABI
    assert "a warning that nobody had heard of" in capsys.readouterr().err


@pytest.mark.slow  # compiles
@needs_gcc
def test_a_warning_of_the_compiler_stops_these_checks(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CC", script(tmp_path / "cc", WARNING))
    with pytest.raises(build.BuildError, match="a warning that nobody had heard of"):
        build.build(tmp_path / "kernels.so", warnings_are_errors=True)
    command = [sys.executable, "-m", "serinus.native.build", "--check"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "a warning that nobody had heard of" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_compiler_takes_the_kernels_without_a_warning(compiler: str, tmp_path: Path, monkeypatch):
    """`make lint` holds the system's compiler to this with its optimisations in every run."""
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    monkeypatch.setenv("CC", compiler if DEEP else script(tmp_path / "cc", QUICK.replace("gcc", compiler)))
    build.build(tmp_path / "kernels.so", warnings_are_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [name for name in build.PLATFORM_TAGS if name != platform.machine()])
def test_zig_takes_the_kernels_for_other_machines_without_a_warning(machine: str, tmp_path: Path):
    """For this one it does so below."""
    build.build(tmp_path / "kernels.so", zig=True, machine=machine, warnings_are_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="compares with the library of this machine")
def test_zig_builds_for_every_machine_of_the_family_without_a_warning_and_finds_its_vectors_when_it_runs(
    tmp_path: Path,
):
    """Without being told, zig compiles for the processor that it runs on; and what it links never fills the table that
    __builtin_cpu_supports reads."""
    command = build.compiler(zig=True)
    defined = subprocess.run(
        [*command, "-dM", "-E", "-x", "c", "-"], input="", capture_output=True, text=True, check=True
    ).stdout
    assert "__AVX__" not in defined
    assert "__ARM_FEATURE_SVE" not in defined
    by_zig = loader.Library(build.build(tmp_path / "kernels.so", zig=True, warnings_are_errors=True))
    with Path("/proc/cpuinfo").open() as file:
        flags = set(file.read().split())
    expected = 16 if "avx512f" in flags else 8 if "avx2" in flags else 0
    native = library()
    assert native is not None
    assert by_zig.quick.serinus_forest_lanes() == native.quick.serinus_forest_lanes() == expected


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CC", script(tmp_path / "cc", FAILING))
    with pytest.raises(build.BuildError, match=r"cc .*ended with 1:\s+kernels.h:1: some message of the compiler"):
        build.build(tmp_path / "kernels.so")
    assert list(tmp_path.glob("*.so*")) == []


def test_without_any_compiler_the_message_says_what_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.CompilerMissing, match="pip install ziglang"):
        build.compiler()
    with pytest.raises(build.CompilerMissing, match="no ziglang to compile for aarch64"):
        build.compiler(machine="aarch64")


def wheel(tmp_path: Path, *, root: Path = ROOT, kind: str = "wheel", **environment: str) -> tuple[Path | None, str]:
    """Build a wheel as a front end does; returns it, or None where the build failed, and what was said."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SERINUS_")}
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path / "dist")]
    ran = subprocess.run(command, cwd=root, env={**clean, **environment}, capture_output=True, text=True, check=False)
    found = list((tmp_path / "dist").glob("*.whl"))
    assert len(found) == (ran.returncode == 0)
    return (found[0] if found else None), ran.stderr


def kernels_in(path: Path) -> bool:
    with zipfile.ZipFile(path) as opened:
        return "serinus/native/_kernels.so" in opened.namelist()


@pytest.mark.slow  # builds a wheel
def test_where_the_kernels_cannot_be_compiled_the_wheel_is_pure_and_the_builder_is_warned(tmp_path: Path):
    made, said = wheel(tmp_path, CC=script(tmp_path / "cc", FAILING))
    assert made is not None, said
    assert made.name.endswith("-py3-none-any.whl")
    assert not kernels_in(made)
    assert "WITHOUT compiled kernels" in said
    assert "some message of the compiler" in said
    assert "SERINUS_REQUIRE_KERNELS=1" in said


@pytest.mark.slow  # builds a wheel
def test_an_editable_install_that_cannot_compile_leaves_no_older_kernels_to_serve(tmp_path: Path):
    root = tmp_path / "checkout"
    for name in ("runtimes", "transformers"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    older = root / "runtimes" / "serinus" / "native" / "_kernels.so"
    older.write_bytes(b"older")
    made, said = wheel(tmp_path, root=root, kind="wheel:editable", CC=script(tmp_path / "cc", FAILING))
    assert made is not None, said
    assert "WITHOUT compiled kernels" in said
    assert not older.exists()


@pytest.mark.slow  # builds a wheel
def test_whoever_requires_the_kernels_gets_no_wheel_without_them(tmp_path: Path):
    made, said = wheel(tmp_path, CC=script(tmp_path / "cc", FAILING), SERINUS_REQUIRE_KERNELS="1")
    assert made is None
    assert "some message of the compiler" in said


def test_an_unknown_machine_is_refused_by_name(tmp_path: Path):
    made, said = wheel(tmp_path, SERINUS_WHEEL_MACHINE="sparc")
    assert made is None
    assert "SERINUS_WHEEL_MACHINE=sparc: expected one of x86_64, aarch64" in said


@pytest.mark.slow
@needs_gcc
def test_a_wheel_built_here_carries_kernels_and_the_tag_of_this_platform(tmp_path: Path):
    in_place = loader.library_path()
    before = in_place.stat().st_mtime_ns
    made, said = wheel(tmp_path, CC=script(tmp_path / "cc", QUICK))
    assert made is not None, said
    assert re.search(r"-py3-none-linux_\w+\.whl$", made.name)
    assert kernels_in(made)
    assert in_place.stat().st_mtime_ns == before, "the library of the checkout was replaced"


@pytest.mark.slow  # builds a wheel
def test_a_pure_wheel_is_pure_though_the_checkout_has_kernels(tmp_path: Path):
    assert loader.library_path().exists()
    made, said = wheel(tmp_path, SERINUS_PURE="1")
    assert made is not None, said
    assert made.name.endswith("-py3-none-any.whl")
    assert not kernels_in(made)
    assert "WITHOUT" not in said


def test_every_exported_symbol_is_one_that_the_loader_asks_for():
    exported = {
        match
        for path in (*NATIVE.rglob("*.h"), *NATIVE.rglob("*.c"))
        for match in re.findall(r"SERINUS_EXPORT \w+ \*?(\w+)\(", path.read_text())
    }
    assert exported == {"serinus_abi", *loader.SYMBOLS}


@pytest.mark.slow
def test_the_kernels_compile_for_macos_on_arm64(tmp_path: Path):
    """Compiled, not run: there is no such machine here."""
    made = tmp_path / "kernels.dylib"
    sources = sorted(str(path) for path in NATIVE.rglob("*.c"))
    command = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-O2", "-shared", "-fPIC", "-target", "aarch64-macos"]
    subprocess.run([*command, f"-I{NATIVE}", "-o", str(made), *sources], check=True, capture_output=True)
    assert made.read_bytes()[:8] == bytes.fromhex("cffaedfe0c000001")  # Mach-O, 64 bits, arm64
