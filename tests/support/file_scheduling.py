"""Whose turn it is, where pytest-xdist runs files side by side (`--dist loadfile`), at a cost that does not grow with the tests that have ended.

pytest-xdist 3.8 keeps what has ended and counts it all after each message of a worker (xdist/scheduler/loadscope.py, `_pending_of`),
and looks for each test from the beginning of all (`_assign_work_unit`): of eleven thousand tests, with six messages each, that is seconds.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

__all__ = ["FileScheduling"]


class FileScheduling(LoadFileScheduling):
    """As its base, but a test that has ended is forgotten, and one that is assigned is found by its name.

    Args:
        config: pytest's.
        log: xdist's, for its debugging.
    """

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        self._places: dict[str, int] = {}

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
        file, tests = self.workqueue.popitem(last=False)
        self.assigned_work[node][file] = tests
        node.send_runtest_some([self._places[nodeid] for nodeid in tests])
