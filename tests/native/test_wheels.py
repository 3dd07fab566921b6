"""The wheels as they are published: what they ask of a machine, what they hold, and that they serve where there is no compiler."""

from __future__ import annotations

import ast
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from depth import DEEP, only_deep
from native_cases import LANES, Case, all_cases, answers, complete_trees, random_rows, records
from native_support import NATIVE, PROGRAMS
from serinus.native import library
from serinus.native.build import PLATFORM_TAGS
from serinus.native.kernel_library import SYMBOLS, Library
from serinus.native.trees.forest import Forest
from serve_support import serving

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "serinus/native/_kernels.so"
MACHINES = tuple(name for name in PLATFORM_TAGS if DEEP or name == platform.machine())
"""Whose wheels are made: each run makes this machine's, and test_build.py compiles the kernels for the others."""
SYSROOTS = {"aarch64": Path("/usr/aarch64-linux-gnu")}
"""Where a machine's C library lies on another one (Debian: libc6-arm64-cross)."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


UV = ROOT / ".venv" / "bin" / "uv"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that `make wheel` makes, but for wheels of machines that are not `MACHINES`."""
    if shutil.which("make") is None or not UV.exists():
        pytest.skip("needs make and the environment that `make setup` makes")
    folder = tmp_path_factory.mktemp("dist")
    chosen = folder.parent / "chosen-uv"
    wanted = "|".join(['""', *MACHINES])  # none: the sdist, and the wheel without kernels
    chosen.write_text(f'#!/bin/sh\ncase "$SERINUS_WHEEL_MACHINE" in {wanted}) exec "{UV}" "$@";; esac\n')
    chosen.chmod(0o755)
    command = ["make", "wheel", f"DIST={folder}", f"UV={chosen}"]
    # Of an environment for each build, DEEP=1 shows that it gets all that it needs.
    environment = {**os.environ, **({} if DEEP else {"UV_NO_BUILD_ISOLATION": "1"})}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def wheel(dist: Path, tag: str) -> Path:
    (found,) = dist.glob(f"serinus-*-py3-none-{tag}.whl")
    return found


def library_of(dist: Path, machine: str, folder: Path) -> Path:
    """The kernels out of a machine's wheel."""
    with zipfile.ZipFile(wheel(dist, PLATFORM_TAGS[machine])) as opened:
        return Path(opened.extract(KERNELS, folder))


def test_there_is_a_wheel_for_each_machine_one_without_kernels_and_the_source(dist: Path):
    names = sorted(re.sub(r"^serinus-\d+(\.\d+)*", "serinus", path.name) for path in dist.glob("serinus-*"))
    assert names == sorted(
        ["serinus-py3-none-any.whl", "serinus.tar.gz"]
        + [f"serinus-py3-none-{PLATFORM_TAGS[machine]}.whl" for machine in MACHINES]
    )


@pytest.mark.parametrize("machine", MACHINES)
def test_a_wheel_says_in_its_metadata_what_its_name_says(dist: Path, machine: str):
    with zipfile.ZipFile(wheel(dist, PLATFORM_TAGS[machine])) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith(".dist-info/WHEEL")]
        text = opened.read(name).decode()
    assert "Root-Is-Purelib: false" in text
    tags = set(re.findall(r"^Tag: (.+)$", text, re.MULTILINE))
    assert tags == {f"py3-none-manylinux2014_{machine}", f"py3-none-manylinux_2_17_{machine}"}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_kernels_of_a_wheel_ask_for_glibc_2_17_and_its_libraries_alone(dist: Path, machine: str):
    with zipfile.ZipFile(wheel(dist, PLATFORM_TAGS[machine])) as opened:
        file = ELFFile(io.BytesIO(opened.read(KERNELS)))
    assert file.get_machine_arch() == {"x86_64": "x64", "aarch64": "AArch64"}[machine]
    dynamic = file.get_section_by_name(".dynamic")
    assert {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")} <= {"libc.so.6", "libm.so.6"}
    versions = {
        auxiliary.name
        for section in file.iter_sections()
        if isinstance(section, GNUVerNeedSection)
        for _, auxiliaries in section.iter_versions()
        for auxiliary in auxiliaries
    }
    assert versions
    assert all(name.startswith("GLIBC_") for name in versions)
    assert max(tuple(map(int, name.removeprefix("GLIBC_").split("."))) for name in versions) <= (2, 17)
    symbols = file.get_section_by_name(".dynsym").iter_symbols()
    defined = {symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF" and symbol.name}
    assert defined == {"serinus_abi", *SYMBOLS}
    assert file.get_section_by_name(".debug_info") is None


def test_the_wheel_without_kernels_holds_all_else(dist: Path):
    held = {}
    tags = [PLATFORM_TAGS[machine] for machine in MACHINES]
    for tag in ("any", *tags):
        with zipfile.ZipFile(wheel(dist, tag)) as opened:
            held[tag] = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert KERNELS not in held["any"]
    for tag in tags:
        assert held[tag] == {*held["any"], KERNELS}
    assert {"serinus/py.typed", "xgboost_server/model.py", "fraud_features/__init__.py"} <= held["any"]


def test_the_source_holds_what_kernels_are_compiled_from_and_none_compiled(dist: Path):
    (source,) = dist.glob("serinus-*.tar.gz")
    with tarfile.open(source) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    assert not [name for name in names if name.endswith(".so")]
    wanted = [path for pattern in ("*.c", "*.h", "*.inc") for path in NATIVE.rglob(pattern)]
    assert {str(path.relative_to(ROOT)) for path in wanted} <= names


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return all_cases()


@pytest.mark.parametrize("machine", MACHINES)
def test_the_kernels_of_every_wheel_answer_as_those_of_this_machine(
    dist: Path, cases: list[Case], machine: str, tmp_path: Path
):
    emulator = []
    if machine != platform.machine():
        sysroot = SYSROOTS.get(machine)
        if shutil.which(f"qemu-{machine}") is None:
            pytest.skip(f"needs qemu-{machine} (Debian: qemu-user)")
        if sysroot is None or not sysroot.is_dir():
            pytest.skip(f"needs the C library of {machine} (Debian: libc6-arm64-cross)")
        emulator = [f"qemu-{machine}", "-L", str(sysroot)]
    program = tmp_path / "cases"
    flags = ["-std=c11", "-O1", "-target", f"{machine}-linux-gnu.2.17", f"-I{NATIVE}", "-o", str(program)]
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", *flags, str(PROGRAMS / "cases.c"), "-ldl"],
        check=True,
        capture_output=True,
    )
    own = library_of(dist, machine, tmp_path)
    command = [*emulator, str(program), str(own)]
    ran = subprocess.run(
        command, input=records([Case("lanes", LANES, (), ()), *cases]), capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()[-4000:]
    lanes, *found = answers(ran.stdout)
    native = library()
    assert native is not None
    assert int.from_bytes(lanes, "little") == (0 if emulator else native.quick.serinus_forest_lanes())
    for case in cases:
        mine, found = found[: len(case.expected)], found[len(case.expected) :]
        case.check(mine)
    assert not found


@pytest.mark.parametrize("lanes", [8, 16])
def test_the_vectors_of_this_machines_wheel_give_the_bits_of_the_plain_walk(dist: Path, lanes: int, tmp_path: Path):
    if platform.machine() not in MACHINES:
        pytest.skip(f"there is no wheel for {platform.machine()}")
    shipped = Library(library_of(dist, platform.machine(), tmp_path))
    if shipped.quick.serinus_forest_lanes() < lanes:
        pytest.skip(f"the machine has no vectors of {lanes}")
    draw = np.random.default_rng(3)
    for depth in range(9):
        trees = complete_trees(25, depth, 30, 2, np.float32, draw)
        base = draw.normal(size=2)
        plain = Forest(trees, columns=30, base=base, lanes=0)
        vectors = Forest(trees, columns=30, base=base, lanes=lanes, library=shipped)
        assert vectors.lanes == lanes
        for count in (4, 15, 16, 64, 67, 200):
            for missing in (False, True):
                rows = random_rows(count, 30, np.float32, missing, draw)
                np.testing.assert_array_equal(vectors.margins(rows), plain.margins(rows), err_msg=f"{depth}, {count}")


@pytest.mark.parametrize(
    "tag",
    [
        pytest.param(PLATFORM_TAGS.get(platform.machine(), "any"), id="kernels"),
        pytest.param("any", id="pure", marks=only_deep("test_without_the_compiled_kernels_the_booster_serves")),
    ],
)
def test_an_installed_wheel_serves_a_model_where_there_is_no_compiler(dist: Path, tag: str, tmp_path: Path):
    import xgboost_support

    booster = xgboost_support.train(trees=20)
    (tmp_path / "model").mkdir()
    xgboost_support.save(booster, tmp_path / "model")
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([str(UV), "venv", "-q", "--python", sys.executable, str(python.parents[1])], check=True)
    wanted = f"serinus[xgboost_server] @ {wheel(dist, tag).as_uri()}"
    # Nothing of this shell's environment but how its package index is reached, and a PATH with nothing on it.
    index = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("UV_", "PIP_", "SSL_")) or "proxy" in name.lower()
    }
    bare = {**index, "HOME": os.environ.get("HOME", str(tmp_path)), "PATH": str(python.parent)}
    options = ["--python", str(python), "-c", str(ROOT / "constraints.txt"), wanted]
    installed = subprocess.run(
        [str(UV), "pip", "install", "-q", *options], env=bare, capture_output=True, text=True, check=False
    )
    assert installed.returncode == 0, installed.stderr
    code = (
        "import shutil; from serinus.native import library; found = library()\n"
        "assert not any(map(shutil.which, ('cc', 'gcc', 'clang')))\n"
        "print(None if found is None else (str(found.path), found.quick.serinus_forest_lanes()))"
    )
    asked = subprocess.run([str(python), "-I", "-c", code], env=bare, capture_output=True, text=True, check=True)
    native = library()
    assert native is not None
    if tag == "any":
        assert asked.stdout.strip() == "None"
        assert "compiled kernels are missing" in asked.stderr
    else:
        place, lanes = ast.literal_eval(asked.stdout)
        assert Path(place).is_relative_to(tmp_path)
        assert lanes == native.quick.serinus_forest_lanes()
    rows = xgboost_support.rows(5, missing=0)
    with serving(
        tmp_path, str(tmp_path / "model"), "--model_name", "m", environment=bare, python=str(python)
    ) as server:
        tensor = {"name": "input-0", "shape": [5, 6], "datatype": "FP32", "data": rows.tolist()}
        status, answer = server.ask("POST", "/v2/models/m/infer", {"inputs": [tensor]})
        assert status == 200, answer
        expected = booster.inplace_predict(rows)
        np.testing.assert_array_equal(np.float32(answer["outputs"][0]["data"]), expected)
        engine = "booster" if tag == "any" else "forest"
        assert re.search(rf"\b{engine}\b", server.log.read_text())
