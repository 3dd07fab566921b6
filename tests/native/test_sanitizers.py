"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, each array ending where its allocation ends; threads under ThreadSanitizer too."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from depth import draws
from native_support import NATIVE, PROGRAMS, TESTED, THREADS, compile_program, has_sanitizers
from protocol_support import random_body
from serinus.native import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The system's compiler, with its sanitizers."""
    try:
        found = build.compiler()
    except build.CompilerMissing:
        pytest.skip("no C compiler")
    if not has_sanitizers(found, tmp_path_factory.mktemp("sanitizers")):
        pytest.skip("the compiler has no sanitizers")
    return found


def test_the_walks_of_trees_read_no_byte_outside_their_arrays(compiler: list[str], tmp_path: Path):
    trees = sorted((NATIVE / "trees").glob("*.c"))
    program = compile_program(compiler, tmp_path / "walks", PROGRAMS / "walks.c", *trees, flags=TESTED)
    subprocess.run([str(program)], check=True, capture_output=True)


def test_dense_networks_read_no_byte_outside_and_give_the_same_bits_by_all_instructions(
    compiler: list[str], tmp_path: Path
):
    program = compile_program(compiler, tmp_path / "networks", PROGRAMS / "networks.c", flags=TESTED)
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]


def test_the_json_kernel_stays_within_its_bounds(compiler: list[str], tmp_path: Path):
    program = compile_program(compiler, tmp_path / "json_bodies", PROGRAMS / "json_bodies.c", flags=TESTED)
    rnd = random.Random(11)
    bodies = [random_body(rnd) for _ in range(draws(30_000, 6_000))]
    bodies += [document[: rnd.randint(0, len(document))] for document in bodies[: len(bodies) // 3]]
    bodies += [b'{"inputs":[{"datatype":"FP32","data":' + b"[" * depth for depth in range(40)]
    records = b"".join(len(document).to_bytes(4, "little") + document for document in bodies)
    run = subprocess.run([str(program)], input=records, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()[-4000:]
    assert int(run.stdout) > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="the relay stands on epoll")
@pytest.mark.parametrize("flags", [(*TESTED, "-pthread"), THREADS], ids=["memory", "threads"])
def test_the_relay_s_thread_shares_nothing_unguarded_however_connections_end(
    flags: tuple[str, ...], compiler: list[str], tmp_path: Path
):
    if not has_sanitizers(compiler, tmp_path, flags):
        pytest.skip("the compiler has no ThreadSanitizer, or none that runs here")
    program = compile_program(compiler, tmp_path / "relayed", PROGRAMS / "relayed.c", flags=flags)
    ran = subprocess.run([str(program)], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    over, stalled, declined = map(int, ran.stdout.split())
    assert min(over, stalled, declined) > 0
