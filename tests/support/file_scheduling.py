"""Whose turn it is, where pytest-xdist runs files side by side (`--dist loadfile`), at a cost that does not grow with the tests that have ended.

pytest-xdist 3.8 keeps what has ended and counts it all after each message of a worker (xdist/scheduler/loadscope.py, `_pending_of`),
and looks for each test from the beginning of all (`_assign_work_unit`): of eleven thousand tests, with six messages each, that is seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

__all__ = ["FileScheduling", "next_file"]

FRAMEWORKS = frozenset(
    {
        *(
            "bulk",
            "client",
            "engines",
            "ensemble_server",
            "fraud_features",
            "hosts",
            "image_pixels",
            "joining",
            "loading",
        ),
        *(
            "lightgbm_server",
            "mlflow_server",
            "onnx_server",
            "recommender_features",
            "sklearn_server",
            "xgboost_server",
        ),
    }
)
"""Folders whose quick tests import frameworks: XGBoost, scikit-learn, pandas, KServe and others, 2 s of CPU in each process that has one of them."""


def next_file(files: Iterable[str], begun: Mapping[str, object], process: object) -> str:
    """Return the first file of what this process has begun, or nobody has; where there is none, the first.

    Args:
        files: those that nobody has, at least one, each a path below the root of the repository.
        begun: which process had the first file of a folder; of all folders of `FRAMEWORKS` together.
        process: who asks.
    """
    files = list(files)
    return next((file for file in files if begun.get(_part(file), process) is process), files[0])


def _part(file: str) -> str:
    folder = file.rpartition("/")[0]
    return "frameworks" if folder.rpartition("/")[2] in FRAMEWORKS else folder


class FileScheduling(LoadFileScheduling):
    """As its base, but a test that has ended is forgotten, and one that is assigned is found by its name.

    Args:
        config: pytest's.
        log: xdist's, for its debugging.
        by_folder: whether a process is given files of the folders that it has begun before others (`next_file`); if not, in their order.
    """

    def __init__(self, config: pytest.Config, log: Producer, *, by_folder: bool = False) -> None:
        super().__init__(config, log)
        self._places: dict[str, int] = {}
        self._by_folder = by_folder
        self._begun: dict[str, WorkerController] = {}

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        """Forget the test, and its file with the last one."""
        nodeid = self.registered_collections[node][item_index]
        files, file = self.assigned_work[node], self._split_scope(nodeid)
        del files[file][nodeid]
        if not files[file]:
            del files[file]
        self._reschedule(node)

    def _pending_of(self, workload: dict[str, dict[str, bool]]) -> int:
        return sum(map(len, workload.values()))

    def _assign_work_unit(self, node: WorkerController) -> None:
        if not self._places:  # all workers have collected the same tests, in the same order
            self._places = {nodeid: place for place, nodeid in enumerate(self.collection or ())}
        file = next_file(self.workqueue, self._begun, node) if self._by_folder else next(iter(self.workqueue))
        tests = self.workqueue.pop(file)
        self._begun.setdefault(_part(file), node)
        self.assigned_work[node][file] = tests
        node.send_runtest_some([self._places[nodeid] for nodeid in tests])
