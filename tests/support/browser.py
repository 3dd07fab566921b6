"""A real browser without a screen: what a page is once its script has run, and how it looks."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

__all__ = ["NEEDS_CHROMIUM", "dumped", "screenshot"]

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
