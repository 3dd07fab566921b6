"""Requests that have waited for the event loop so long that nobody waits for their answers any more.

Theory of operation. A process that gets less of the machine than its clients ask of it reads late: requests wait in the kernel, where no queue of ours
sees them, and each is old when it is read. First come, first served then serves nobody. So while the loop is late (`LoopWatchdog` tells), each
request for inference is asked how long its last bytes have waited, which the kernel knows, and that wait is judged as every other queue here is (CoDel,
RFC 8289; `adaptive_limit`): one that has waited for more than `OLD_S` is refused before its body is decoded, once waits of more than
`STANDING_S` have stood for `INTERVAL_S`. A pause, after which all that waited is read within a few milliseconds, refuses nothing; nor does a model that is idle
lose a request, since one that is young ends the standing. And what has waited must be a queue: where a hundred scrapes keep the loop for a
second, the few requests beside them wait as long, and refusing those shortens nothing (CoDel drops nothing either while no more than a packet
waits: RFC 8289, section 5, `maxpacket`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ...dataplane.batching.adaptive_limit import INTERVAL_S, STANDING_S
from ...errors import Overloaded
from ...model import Family

__all__ = ["FEW", "LATE_S", "OLD_S", "LateArrivals"]

LATE_S: Final = 0.02
"""The loop's lateness from which requests are asked: to ask costs 2 us, and nothing shorter can add up to `STANDING_S`."""
OLD_S: Final = 0.5
"""Half of the second that people wait; twice and more what a start of another process or a few large answers keep the loop for."""
FEW: Final = 8
"""Requests that may have waited too long, one after the other, before any is refused: as many as a client or two send in a bad second."""
_RETRY_S: Final = 1.0


class LateArrivals:
    """Judges the requests of one server.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.is_late = False
        """Requests are to be asked how long they have waited."""
        self._since: float | None = None
        """When the first of those was read that had waited too long, since one that had not; None: the last one had not."""
        self._stood = 0
        """How many of those since then."""
        self.refused = 0

    def note(self, late_s: float) -> None:
        """Learn how late the loop is."""
        self.is_late = late_s > LATE_S
        if not self.is_late:
            self._since = None

    def families(self) -> list[Family]:
        """Tell how many were refused, for the page of metrics."""
        text = "Requests refused because they had waited too long before they could be read."
        return [Family("serinus_late_requests_refused_total", text, "counter", [({}, self.refused)])]

    def check(self, waited_s: float) -> None:
        """Judge a request that is read now.

        Args:
            waited_s: since its last bytes came.

        Raises:
            Overloaded: it is too old, and so have others been for a while.
        """
        if waited_s < STANDING_S:
            self._since = None
            return
        now = self._clock()
        if self._since is None:
            self._since, self._stood = now, 0
        self._stood += 1
        if self._stood > FEW and now - self._since > INTERVAL_S and waited_s > OLD_S:
            self.refused += 1
            raise Overloaded(
                f"the server is overloaded: this request had waited for {waited_s:.2g} s before it could be read; come back in {_RETRY_S:g} s or send to "
                "more replicas",
                _RETRY_S,
            )
