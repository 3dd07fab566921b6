"""Files that an operator exchanges while the server runs (certificates, tokens), read again when they have changed.

Theory of operation. A thread looks at the files once a second: by path, so that the exchange of a link is seen, as Kubernetes does it with
Secrets (`tls.crt -> ..data/tls.crt`, `..data -> ..2026_11_29`). A change is taken up once two looks have found the same, so that a file which
is still being written, or a pair of which one half is new, is mostly left alone; what is read all the same and is not good changes
nothing, is said, and is read again at the next change. SIGHUP has all of them read at once. Nothing of this runs on the event loop, which a
stalled volume would hold up.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import ConfigError

__all__ = ["FileWatch", "has_terminal"]

_log = logging.getLogger("serinus.keys")

_PERIOD_S: Final = 1.0
"""The kubelet brings a changed Secret within about a minute (syncFrequency); a second more is nothing to that."""

_Print = tuple[tuple[int, ...] | None, ...]


@dataclass(slots=True)
class _Watched:
    what: str
    files: Sequence[Path]
    reload: Callable[[], None]
    loaded: _Print
    seen: _Print


class FileWatch:
    """Looks at files from a thread of its own, from the first `add` until `close`."""

    def __init__(self, *, period_s: float = _PERIOD_S) -> None:
        self._period_s = period_s
        self._watched: list[_Watched] = []
        self._wake = threading.Event()
        self._all = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, what: str, files: Sequence[Path], reload: Callable[[], None]) -> None:
        """Watch files that are read together.

        Args:
            what: names them in the log.
            files: paths; links are followed each time.
            reload: reads them, on the watch's thread; raises ConfigError where they are not good, and changes nothing then.
        """
        found = _print(files)
        self._watched.append(_Watched(what, files, reload, found, found))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="serinus-keys", daemon=True)
            self._thread.start()

    def reload_all(self) -> None:
        """Have everything read again now, changed or not."""
        self._all = True
        self._wake.set()

    def close(self) -> None:
        """Stop looking."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(self._period_s)

    def _run(self) -> None:
        while True:
            self._wake.wait(self._period_s)
            self._wake.clear()
            if self._closed:
                return
            everything, self._all = self._all, False
            for watched in self._watched:
                self._look(watched, force=everything)

    def _look(self, watched: _Watched, *, force: bool) -> None:
        found = _print(watched.files)
        steady, watched.seen = found == watched.seen, found
        if not force and (found == watched.loaded or not steady):
            return
        watched.loaded = found
        try:
            watched.reload()
        except ConfigError as error:
            _log.error("%s: not taken, what was read before stays: %s", watched.what, error)
        except Exception:  # noqa: BLE001 # the thread must go on looking
            _log.exception("%s: not taken, what was read before stays", watched.what)
        else:
            _log.info("%s: read again", watched.what)


def has_terminal() -> bool:
    """Whether this process has a terminal that it belongs to, whose end is told by SIGHUP too."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _print(files: Sequence[Path]) -> _Print:
    """Tell one state of files from another without reading them; None: there is none, or it cannot be looked at."""
    return tuple(map(_print_of, files))


def _print_of(file: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
