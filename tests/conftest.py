"""What every test session needs."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool

from serinus.server.http.connection_state import ImpossibleStep, Steps

QUICK = os.environ.get("QUICK_TESTS") == "1"
"""Whether this is `make test-quick`, which leaves out slow tests and draws fewer examples of the others."""


def _keep_bytecode() -> None:
    """Let all processes of a run share what one compiled, though the environment forbids it, as images' do.

    The tests start some hundred servers; one that compiles KServe, PyTorch or TensorFlow anew takes 2 to 20 s of CPU more to start.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


_keep_bytecode()


def _keep_to_one_thread() -> None:
    """Let what is built on OpenMP (XGBoost, LightGBM, PyTorch) work in one thread, and sleep where it waits for others.

    A run has a process a core. The pools of threads that each would start spin while they wait for one another: the tests of
    xgboost_server and lightgbm_server took 26 s of CPU with them, and 11 without. A runtime that is told its threads has them.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_keep_to_one_thread()


def _hear_interrupts() -> None:
    """Let Ctrl-C be heard by what tests start: a shell has what runs in its background ignore it, and all of its children inherit that."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_hear_interrupts()


def _let_go_use_memory() -> None:
    """Let kubectl and promtool, which live a second, collect garbage a quarter as often: 100 is Go's own (runtime, GOGC).

    It takes a fifth of the CPU of a rendering and of a run of the rules' unit tests.
    """
    os.environ.setdefault("GOGC", "400")


_let_go_use_memory()


def _import_tritonclient_apart() -> None:
    """Import tritonclient.grpc with a descriptor pool of its own.

    KServe's package and tritonclient's both register the messages of package `inference` in protobuf's default pool, and the
    second to be imported fails: no program can use both. The tests use both, as peers of ours, in one process.
    """
    if importlib.util.find_spec("tritonclient") is None:
        return
    apart, default = descriptor_pool.DescriptorPool(), descriptor_pool.Default
    descriptor_pool.Default = lambda: apart
    try:
        import tritonclient.grpc  # noqa: F401
    finally:
        descriptor_pool.Default = default


def _let_examples_take_their_time() -> None:
    """How long one takes to draw or to run is the machine's doing, and no property is about time."""
    if importlib.util.find_spec("hypothesis") is None:  # MLServer's environment
        return
    from hypothesis import HealthCheck, settings

    examples = 20 if QUICK else 100 if os.environ.get("DEEP_TESTS") == "1" else 50
    settings.register_profile(
        "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=examples
    )
    settings.load_profile("any machine")


def _ask_once_which_fixtures_are_loops() -> None:
    """Keep looptime's list of pytest-asyncio's fixtures: it makes it anew for each fixture of each test, a tenth of what a small test costs."""
    if importlib.util.find_spec("looptime") is None:  # MLServer's environment
        return
    import pytest_asyncio.plugin as loops
    from looptime._internal import plugin

    names = frozenset(name for name in dir(loops) if plugin._is_fixture(getattr(loops, name)))

    def should_patch(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> bool:
        return fixturedef.func.__module__ == loops.__name__ or fixturedef.argname in names

    plugin._should_patch = should_patch


def _runs_tests(config: pytest.Config) -> bool:
    """Whether this is a process that runs tests: of pytest-xdist the one that prints runs none, and others wait for it to begin."""
    return hasattr(config, "workerinput") or config.getoption("dist", "no") == "no"


def pytest_configure(config: pytest.Config) -> None:
    """Prepare what tests import, and print what the dearest files cost, where COSTS says how many (tests/support/cpu_costs.py)."""
    if _runs_tests(config):
        _import_tritonclient_apart()
        _let_examples_take_their_time()
        _ask_once_which_fixtures_are_loops()
    most = int(os.environ.get("COSTS", "0"))
    if most and importlib.util.find_spec("cpu_costs") is not None:  # MLServer's environment has it not
        from cpu_costs import CpuCosts

        config.pluginmanager.register(CpuCosts(most))
    if importlib.util.find_spec("worker_messages") is not None:
        from worker_messages import tell_less

        tell_less(config)


_ALL_SLOW = re.compile(r"^pytestmark = (\[[^\]]*)?pytest\.mark\.slow\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave alone files of which the Makefile's choice (`-m ...`) wants no test: those without the marker alone, and those that are slow as a whole.

    To collect all takes four seconds of CPU in each process of a run.
    """
    wanted = set(str(config.getoption("markexpr")).split(" and "))
    if collection_path.suffix != ".py" or not wanted <= {"alone", "not alone", "not slow"}:
        return None
    text = collection_path.read_text()
    unwanted = ("alone" in wanted and "mark.alone" not in text) or ("not slow" in wanted and _ALL_SLOW.search(text))
    return True if unwanted else None


@pytest.hookimpl(optionalhook=True)  # MLServer's environment has no xdist
def pytest_xdist_auto_num_workers() -> int | None:
    """Three processes more than cores: they work while others wait for a server that starts, drains or is to heal, or for a reader that is slow.

    The tests of the quick run wait less, and each process more imports everything once more: one is enough for them.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1 if QUICK else cores + 3


LONGEST = (
    "hosts/test_mlserver.py",
    "reliability/test_faults.py",
    "local/test_runner_healing.py",
    "services/test_own_model_page.py",
    "image_pixels/test_models.py",
    "rest/test_openapi.py",
    "loading/test_damaged_files.py",
    "canary/test_rollouts.py",
    "exports/test_stock_kserve.py",
    "rest/test_fuzz.py",
    "local/test_runner.py",
    "monitoring/test_alerts.py",
    "repository/test_mutants.py",
    "canary/test_outages.py",
    "local/test_interrupt.py",
    "serve/test_workers_agree.py",
    "tuning/test_tune.py",
    "tuning/test_optimize.py",
    "monitoring/test_dashboards_and_runbooks.py",
    "local/test_cpu_weight.py",
    "bulk/test_predict_file.py",
    "native/test_wheels.py",
    "tensorflow_server/test_first_examples.py",
    "torch_server/test_archive.py",
    "xgboost_server/test_model.py",
)
"""Files of the whole run that take long; begun last, one of them would go on while all others have ended."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their count where they are long or no text: an archive holds its date, and the processes of a run must agree."""
    if isinstance(val, bytes) and (len(val) > 80 or not val.isascii() or not val.decode("ascii").isprintable()):
        return f"{argname}-{len(val)}-bytes"
    return None


SECOND_ENGINES = frozenset({"grpcio", "uvicorn"})
"""The ids of cases for `--grpc grpcio` and `--http uvicorn`; beside each stands one of the default engine."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, where `make test` runs files side by side; all others keep their order.

    The quick run asks the default engines alone: for it, the cases of the others are slow.
    """
    for item in items if QUICK else ():
        ids = item.callspec._idlist if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        if not SECOND_ENGINES.isdisjoint(ids):
            item.add_marker("slow")
    here = Path(__file__).parent
    rank = {here / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)  # MLServer's environment has no xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Run files side by side at a cost that does not grow with the tests that have ended; in the quick run, frameworks in one process."""
    if config.getoption("dist") != "loadfile":
        return None
    from file_scheduling import FileScheduling

    return FileScheduling(config, log, by_folder=QUICK)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect the tests without the garbage collector, which finds nothing among them, and spare it them later: it would look at all in each full collection.

    Each takes 4 % of a run's CPU. The quick run also looks for what its tests leave a tenth as often as is usual, which takes 2 %.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        if QUICK:
            gc.set_threshold(7000, 10, 10)
        gc.enable()


_impossible: list[str] = []
_refuse = Steps.__missing__


def _note(self: Steps, state: object) -> object:
    try:
        return _refuse(self, state)
    except ImpossibleStep as error:
        _impossible.append(str(error))
        raise


Steps.__missing__ = _note  # type: ignore[method-assign] # for all tests, since each would do the same


@pytest.fixture(autouse=True)
def impossible_steps() -> Iterator[list[str]]:
    """Fail a test in which some connection took a step that its table lacks: the parser turns the exception into a 400."""
    _impossible.clear()
    yield _impossible
    assert _impossible == []
