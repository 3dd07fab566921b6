"""Which folders of a folder may hold models: not what every volume, Python and Kubernetes leave there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Folders", "model_folders", "why_unreadable"]

_NO_MODELS: Final = frozenset({"lost+found", "__pycache__", "__MACOSX", "$RECYCLE.BIN", "System Volume Information"})
"""Of file systems (ext4's root has lost+found) and of tools, by name; what begins with a dot is nobody's model either: `.git`,
`.ipynb_checkpoints`, and the `..data` of a mounted ConfigMap."""


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of a folder."""

    models: tuple[Path, ...]
    """Sorted."""
    left_out: tuple[str, ...]
    """The others, each with the reason where its name does not tell it."""


def model_folders(parent: Path) -> Folders:
    """Look through a folder.

    Raises:
        OSError: it cannot be read itself.
    """
    models: list[Path] = []
    left_out: list[str] = []
    for child in sorted(parent.iterdir()):
        if not _is_folder(child):
            continue
        if child.name.startswith(".") or child.name in _NO_MODELS:
            left_out.append(str(child))
        elif (reason := why_unreadable(child)) is not None:
            left_out.append(f"{child} (it cannot be read: {reason})")
        else:
            models.append(child)
    return Folders(tuple(models), tuple(left_out))


def why_unreadable(folder: Path) -> str | None:
    """Tell why a folder cannot be read; None: it can."""
    try:
        with os.scandir(folder):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # below a folder that may be listed and not entered
        return False
