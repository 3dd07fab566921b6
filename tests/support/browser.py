"""A real browser without a screen: what a page is once its script has run, and how it looks."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["NEEDS_CHROMIUM", "Tab", "dumped", "opened", "screenshot"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")
_PREFERRED = {"dark": "0", "light": "1"}


def _run(folder: Path, *words: str) -> bytes:
    assert CHROMIUM is not None
    # --no-sandbox: as root, in a container, there is none.
    plain = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/profile",
    ]
    done = subprocess.run([CHROMIUM, *plain, *words], capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def dumped(folder: Path, url: str, *, wait_s: float = 0.0) -> str:
    """The document after its script has run for so long."""
    return _run(folder, f"--virtual-time-budget={int(wait_s * 1000)}", "--dump-dom", url).decode()


def screenshot(folder: Path, url: str, *, width: int, scheme: str) -> tuple[int, int, int]:
    """Width and height of the picture, and its bytes."""
    path = folder / f"{width}-{scheme}.png"
    _run(
        folder,
        f"--window-size={width},2400",
        f"--blink-settings=preferredColorScheme={_PREFERRED[scheme]}",
        f"--screenshot={path}",
        url,
    )
    head = path.read_bytes()
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return (*struct.unpack(">II", head[16:24]), len(head))


class Tab:
    """A page of a browser that a test uses as a person would, over Chrome's DevTools Protocol on two pipes."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._last, self._rest, self._session = 0, b"", ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")

    def show(self, url: str, *, width: int = 1280, scheme: str = "light") -> None:
        """Go to a page and wait until it is loaded."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page; what it gives, as JSON knows it."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, limit_s: float = 20.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + limit_s
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}\n{self.run('document.body.innerText')}"
            time.sleep(0.02)  # the page works, and tells nobody

    def picture(self, path: Path) -> tuple[int, int]:
        """Write the whole page as PNG; its width and height."""
        data = base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        path.write_bytes(data)
        return struct.unpack(">II", data[16:24])

    def _call(self, method: str, **parameters: Any) -> Any:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                piece = os.read(self._in, 1 << 20)
                assert piece, "the browser has ended"
                self._rest += piece
            line, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Tab]:
    """A browser with one page, until the block ends."""
    assert CHROMIUM is not None
    to_browser, from_browser = os.pipe(), os.pipe()

    def place() -> None:
        """The browser reads from descriptor 3 and writes to 4, which may be those of the pipes' other ends."""
        spare = os.dup(to_browser[0]), os.dup(from_browser[1])
        os.dup2(spare[0], 3)
        os.dup2(spare[1], 4)

    process = subprocess.Popen(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}/profile",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=place,  # duplicates two descriptors, no more
        close_fds=False,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        yield Tab(to_browser[1], from_browser[0])
    finally:
        process.kill()
        process.wait()
        os.close(to_browser[1])
        os.close(from_browser[0])
