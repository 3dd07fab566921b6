"""Several workers have one set of models: a change happens on all or on none, and a worker that comes later has what the others have."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from serve_support import Served, serving
from waiting import wait_until

pytestmark = pytest.mark.slow  # each test starts servers

SUPPORT = Path(__file__).resolve().parents[1] / "support"
BODY = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
HELD = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [-1.0]}]}


class Repository:
    """A folder of models that answer a number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, value: str, version: str = "") -> None:
        model = self.folder / name / version
        model.mkdir(parents=True, exist_ok=True)
        (model / "value.txt").write_text(value)
        settings = {"name": name, "implementation": "worker_models.Told", "parameters": {"uri": "."}}
        if version:
            settings["parameters"]["version"] = version
        (model / "model-settings.json").write_text(json.dumps(settings))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "repository").mkdir()
    return Repository(tmp_path / "repository")


@contextlib.contextmanager
def group(tmp_path: Path, *flags: str, workers: int = 2) -> Iterator[Served]:
    arguments = ("--model_repository", str(tmp_path / "repository"), "--allow_implementation", "worker_models.*")
    with serving(
        tmp_path,
        *(*arguments, "--workers", str(workers), *flags),
        environment={"PYTHONPATH": str(SUPPORT)},
        timeout_s=90,
    ) as served:
        wait_until(lambda: len(listening(served)) == workers)
        yield served


def listening(served: Served) -> list[str]:
    return [line for line in served.log.read_text().splitlines() if " listens" in line]


def processes(served: Served) -> list[psutil.Process]:
    children = psutil.Process(served.process.pid).children()
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


def answers(served: Served, name: str = "m", *, workers: int = 1) -> dict[int, int | str]:
    """What each worker answers, by its process: of forty requests, and more until so many workers have answered."""
    found: dict[int, int | str] = {}
    for number in range(2000):
        if number >= 40 and len(found) >= workers:
            break
        status, answer = served.ask("POST", f"/v2/models/{name}/infer", BODY)
        if status == 200:
            value, pid = (output["data"][0] for output in answer["outputs"])
            found[pid] = value
        else:
            found[-status] = answer["error"]
    return found


def values(served: Served, name: str = "m") -> set[int | str]:
    return set(answers(served, name).values())


def worker(served: Served, number: int) -> psutil.Process:
    return next(one for one in processes(served) if one.environ()["SERINUS_WORKER"] == str(number))


def replaced(served: Served, old: psutil.Process, *, count: int) -> None:
    """Wait until the worker is gone and so many have begun to listen."""
    wait_until(lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: len(listening(served)) >= count, limit_s=60)


@pytest.mark.parametrize(
    ("words", "said"), [("2 fails 1", "it fails here"), ("2 exits 1", "a worker ended")], ids=["refuses", "dies"]
)
def test_a_load_that_fails_on_one_worker_happens_on_none(words: str, said: str, repository: Repository, tmp_path: Path):
    repository.put("m", "1")
    with group(tmp_path) as served:
        assert values(served) == {1}
        repository.put("m", words)
        try:
            status, answer = served.ask("POST", "/v2/repository/models/m/load", {})
        except (ConnectionError, http.client.HTTPException):
            assert said == "a worker ended"  # and it was the one that was asked
        else:
            assert status in {500, 503}
            assert said in answer["error"]
        assert values(served) == {1}
        repository.put("m", "3")
        wait_until(lambda: len(processes(served)) == 2)
        wait_until(lambda: served.ask("POST", "/v2/repository/models/m/load", {})[0] == 200)
        assert values(served) == {3}


def test_a_load_of_several_versions_happens_in_all_or_in_none(repository: Repository, tmp_path: Path):
    repository.put("m", "1", "1")
    with group(tmp_path) as served:
        repository.put("m", "2", "2")
        repository.put("m", "3 fails 0", "3")
        assert served.ask("POST", "/v2/repository/models/m/load", {})[0] == 500
        assert values(served) == {1}
        told = {served.ask("GET", "/v2/models/m")[1]["versions"][-1] for _ in range(12)}
        assert told == {"1"}


def test_a_worker_that_dies_after_it_has_prepared_comes_back_with_what_was_decided(
    repository: Repository, tmp_path: Path
):
    repository.put("m", "1")
    with group(tmp_path) as served, concurrent.futures.ThreadPoolExecutor() as pool:
        repository.put("m", "2 waits 0")
        loading = pool.submit(served.ask, "POST", "/v2/repository/models/m/load", {})
        wait_until((repository.folder / "waiting").exists)
        victim = worker(served, 1)  # its load does not wait
        victim.kill()
        replaced(served, victim, count=2)
        assert values(served) <= {1}
        (repository.folder / "go").touch()
        try:
            status, _ = loading.result(30)
        except (ConnectionError, http.client.HTTPException):  # it was the victim that was asked
            status = None
        # It died after it had told that it has prepared, or before; either way all that answer have the same.
        decided = {200: [{2}], 503: [{1}], None: [{1}, {2}]}[status]
        if status is None:
            wait_until(lambda: values(served) in decided)
        assert values(served) in decided
        assert served.ask("POST", "/v2/repository/models/m/load", {})[0] == 200
        wait_until(lambda: len(listening(served)) >= 3, limit_s=60)
        assert values(served) == {2}


def test_a_replaced_worker_takes_no_files_that_the_others_did_not_load(repository: Repository, tmp_path: Path):
    repository.put("m", "1")
    with group(tmp_path) as served:
        repository.put("m", "2")
        victim = worker(served, 1)
        victim.kill()
        wait_until(lambda: "its files have changed" in served.log.read_text(), limit_s=60)
        assert values(served) == {1}
        assert served.ask("POST", "/v2/repository/models/m/load", {})[0] == 200
        wait_until(lambda: len(listening(served)) >= 3, limit_s=60)
        assert values(served) == {2}


def test_a_replaced_worker_has_what_was_loaded_and_unloaded_by_request(repository: Repository, tmp_path: Path):
    repository.put("gone", "1")
    repository.put("m", "1", "1")
    with group(tmp_path) as served:
        repository.put("late", "5")
        config = json.dumps({"max_batch_size": 7})
        assert served.ask("POST", "/v2/repository/models/late/load", {"parameters": {"config": config}})[0] == 200
        assert served.ask("POST", "/v2/repository/models/gone/unload", {})[0] == 200
        repository.put("m", "2", "2")  # on the disk, and asked for by nobody
        victim = worker(served, 1)
        victim.kill()
        replaced(served, victim, count=3)
        found = {name: answers(served, name, workers=2) for name in ("m", "late")}
        assert {name: set(one.values()) for name, one in found.items()} == {"m": {1}, "late": {5}}
        assert all(len(one) == 2 for one in found.values())
        assert {served.ask("POST", "/v2/models/gone/infer", BODY)[0] for _ in range(20)} == {404}
        sizes = {served.ask("GET", "/v2/models/late/config")[1]["max_batch_size"] for _ in range(20)}
        assert sizes == {7}
        told = {json.dumps(sorted(map(str, served.ask("POST", "/v2/repository/index", {})[1]))) for _ in range(20)}
        assert len(told) == 1
        assert served.ask("GET", "/v2/health/ready")[0] == 200


def test_a_worker_that_cannot_have_the_others_models_answers_nobody(repository: Repository, tmp_path: Path):
    repository.put("m", "1", "1")
    with group(tmp_path) as served:
        shutil.rmtree(repository.folder / "m" / "1")
        repository.put("m", "2", "2")
        victim = worker(served, 1)
        victim.kill()
        wait_until(lambda: "cannot have the models of the others" in served.log.read_text(), limit_s=60)
        assert values(served) == {1}
        assert len(listening(served)) == 2
        repository.put("m", "4", "3")
        assert served.ask("POST", "/v2/repository/models/m/load", {})[0] == 200
        wait_until(lambda: len(listening(served)) == 3, limit_s=60)
        found = answers(served, workers=2)
        assert set(found.values()) == {4}
        assert len(found) == 2
        assert 'serinus_worker_restarts_total{reason="models"}' in served.ask("GET", "/metrics")[1]


def test_a_stopped_worker_is_replaced_and_counts_are_kept(repository: Repository, tmp_path: Path):
    repository.put("m", "1")
    with group(tmp_path) as served:
        for _ in range(20):
            assert served.ask("POST", "/v2/models/m/infer", BODY)[0] == 200
        assert success(served) == 20
        victim = worker(served, 0)
        os.kill(victim.pid, signal.SIGSTOP)
        replaced(served, victim, count=3)
        for _ in range(20):
            assert served.ask("POST", "/v2/models/m/infer", BODY)[0] == 200
        wait_until(lambda: success(served) == 40)
        assert 'serinus_worker_restarts_total{reason="silent"} 1' in served.ask("GET", "/metrics")[1]
        assert "was stopped by a signal" in served.log.read_text()


def test_a_worker_whose_loop_is_held_is_replaced_and_no_scrape_is_needed_for_its_counts(
    repository: Repository, tmp_path: Path
):
    repository.put("m", "1")
    with group(tmp_path, "--worker_timeout_s", "7") as served, concurrent.futures.ThreadPoolExecutor() as pool:
        for _ in range(20):
            assert served.ask("POST", "/v2/models/m/infer", BODY)[0] == 200
        before = {one.pid for one in processes(served)}
        for _ in range(40):
            assert served.ask("POST", "/v2/models/m/infer", BODY)[0] == 200
        time.sleep(2.5)  # signs of life come every second, and bring the counts along
        served_by = pool.submit(served.ask, "POST", "/v2/models/m/infer", HELD)
        wait_until(lambda: "no sign of life" in served.log.read_text(), limit_s=60)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            served_by.result(30)
        wait_until(lambda: len(listening(served)) == 3, limit_s=60)
        assert success(served) == 60
        assert len({one.pid for one in processes(served)} & before) == 1


def success(served: Served) -> float:
    lines = served.ask("GET", "/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("nv_inference_request_success{"))
