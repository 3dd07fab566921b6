"""Manifests of files and folders: read, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from .documents import Document, load_text
from .kustomization import KUSTOMIZATIONS, find_kustomization, read_text, render
from .linter import check_documents
from .problems import Problem, Problems

__all__ = ["check", "load_documents", "read_documents"]


def _is_object(document: Document) -> bool:
    return bool(document.kind and document.api_version)


def load_documents(path: Path) -> list[Document]:
    """Read the objects of a file or folder; a folder with a kustomization is rendered.

    Args:
        path: a YAML file, a folder of YAML files (not deeper), or a folder with a `kustomization.yaml`.

    Raises:
        ConfigError: nothing there, not YAML, not Kubernetes objects, or kubectl could not render it.
    """
    if path.is_dir():
        kustomization = find_kustomization(path)
        if kustomization is not None:
            return render(kustomization)
        files = sorted(file for file in path.iterdir() if file.suffix in {".yaml", ".yml"})
        found = [
            doc for file in files for doc in load_text(read_text(file), str(file), patches=True) if _is_object(doc)
        ]
        if not found:
            raise ConfigError(f"{path}: no manifest: the folder holds no YAML file with apiVersion and kind")
        return found
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    if path.name in KUSTOMIZATIONS:
        return render(path)
    found = load_text(read_text(path), str(path))
    for document in found:
        if not _is_object(document):
            missing = "apiVersion" if not document.api_version else "kind"
            raise ConfigError(f"{document.place(())}: {missing}: missing; every manifest names apiVersion and kind")
    if not found:
        raise ConfigError(f"{path}: empty; expected a manifest such as an InferenceService")
    return found


def read_documents(paths: Sequence[Path], problems: Problems) -> list[Document]:
    """Read the objects of several paths; what cannot be read is a problem."""
    documents: list[Document] = []
    for path in paths:
        try:
            documents += load_documents(path)
        except ConfigError as error:
            for text in error.problems:
                problems.extend([_unreadable(path, text)])
    return documents


def _unreadable(path: Path, text: str) -> Problem:
    """A problem of a file as such; its message begins with the file and perhaps the line."""
    head, _, message = text.partition(": ")
    file, colon, line = head.rpartition(":")
    if colon and line.isdecimal():
        return Problem(file, int(line), "", message, "mend the file")
    return Problem(head if message else str(path), 1, "", message or text, "mend the path or the file")


def check(paths: Sequence[Path], runtimes: Sequence[Path] = ()) -> tuple[Problem, ...]:
    """Every problem of the manifests, as `serinus lint` shows them."""
    problems = Problems()
    check_documents(read_documents([*paths, *runtimes], problems), problems)
    return problems.all
