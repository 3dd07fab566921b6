"""Manifests of files, folders and pipes: read, and checked.

Theory of operation. `read_documents` reads what one `kubectl apply` takes and is what the local runner reads. `check` reads more widely, as a
linter does: it descends into folders, takes standard input, reads on behind a broken document, and tells sources of Helm from manifests.
Objects are judged together with those of their file or folder, as they are applied together; the folders of a tree are apart.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..small_file import is_folder, is_there
from .documents import Document, load_text
from .kustomization import KUSTOMIZATIONS, find_kustomization, read_text, render
from .linter import check_documents
from .problems import Problem, Problems
from .rules.update_rules import check_updates

__all__ = ["Checked", "check", "load_documents", "read_documents"]

_SUFFIXES = {".yaml", ".yml", ".json"}
_PASSED_OVER = {"node_modules", "__pycache__", "venv"}
_TEMPLATE = re.compile(r"\{\{-?\s*(?:[.$]|if|range|with|include|define|end|template|toYaml|tpl|/\*)")

_MOST_AGAIN: Final = 32 << 20
"""Characters of a broken file that are read again, document by document: each comes with as many empty lines as there are lines before it."""


def _is_object(document: Document) -> bool:
    return bool(document.kind and document.api_version)


def load_documents(path: Path) -> list[Document]:
    """Read the objects of a file or folder; a folder with a kustomization is rendered.

    Args:
        path: a YAML file, a folder of YAML files (not deeper), or a folder with a `kustomization.yaml`.

    Raises:
        ConfigError: nothing there, not YAML, not Kubernetes objects, or kubectl could not render it.
    """
    if is_folder(path):
        kustomization = find_kustomization(path)
        if kustomization is not None:
            return render(kustomization)
        files = sorted(file for file in path.iterdir() if file.suffix in {".yaml", ".yml"} and file.is_file())
        found = [
            doc for file in files for doc in load_text(read_text(file), str(file), patches=True) if _is_object(doc)
        ]
        if not found:
            raise ConfigError(f"{path}: no manifest: the folder holds no YAML file with apiVersion and kind")
        return found
    if not is_there(path):
        raise ConfigError(f"{path}: no such file or folder")
    if path.name in KUSTOMIZATIONS:
        return render(path)
    return _objects(read_text(path, is_named=True), str(path))


def _objects(text: str, file: str) -> list[Document]:
    """The objects of a text that is to hold nothing else."""
    found = load_text(text, file)
    for document in found:
        if not _is_object(document):
            missing = "apiVersion" if not document.api_version else "kind"
            raise ConfigError(f"{document.place(())}: {missing}: missing; every manifest names apiVersion and kind")
    if not found:
        raise ConfigError(f"{file}: empty; expected a manifest such as an InferenceService")
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
        return Problem(file, int(line), "", message, "mend the file", layer="file", rule="file-readable")
    where = head if message else str(path)
    return Problem(where, 1, "", message or text, "mend the path or the file", layer="file", rule="file-readable")


class Checked:
    """What was looked at, and what was found."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.objects = 0
        self.files: set[str] = set()


def check(
    paths: Sequence[Path],
    *,
    previous: Sequence[Document] = (),
    kserve_version: tuple[int, int] | None = None,
    more: Callable[[Sequence[Document], Problems], None] | None = None,
) -> Checked:
    """Every problem of the manifests, as `serinus lint` shows them.

    Args:
        paths: files, folders (searched to the bottom; one with a kustomization is rendered instead), `-` for standard input.
        previous: objects as they are now, for the rules of updates; see `serinus.manifests.rules.update_rules`.
        kserve_version: see `serinus.manifests.linter.check_documents`.
        more: a further check of documents that are applied together, by a room above.
    """
    checked = Checked()
    for path in paths:
        before = checked.objects + len(checked.problems)
        for group in _groups(path):
            problems = Problems()
            named = group == [path]
            documents = [document for source in group for document in _read(source, problems, named=named)]
            check_documents(documents, problems, kserve_version=kserve_version)
            check_updates(previous, documents, problems)
            if more is not None:
                more(documents, problems)
            checked.problems += problems.all
            checked.objects += len(documents)
            checked.files |= {document.file for document in documents} | {problem.file for problem in problems.all}
        if is_folder(path) and before == checked.objects + len(checked.problems):
            said = f"{path}: no manifest: neither the folder nor one below holds a YAML file with apiVersion and kind"
            checked.problems.append(_unreadable(path, said))
    return checked


def _is_component(folder: Path) -> bool:
    """Whether a folder holds a kustomization that is rendered as a part of others only."""
    kustomization = find_kustomization(folder)
    return (
        kustomization is not None
        and re.search(r"^kind:\s*Component\b", read_text(kustomization), re.MULTILINE) is not None
    )


def _groups(path: Path) -> Iterator[list[Path]]:
    """Sets of files whose objects are applied together."""
    if str(path) == "-" or not is_folder(path) or find_kustomization(path) is not None:
        yield [path]
        return
    if (path / "Chart.yaml").is_file():
        yield [path / "Chart.yaml"]
        return
    entries = sorted(path.iterdir())
    files = [entry for entry in entries if entry.is_file() and entry.suffix in _SUFFIXES]
    if files:
        yield files
    folders = [
        e
        for e in entries
        if e.is_dir() and not e.name.startswith(".") and e.name not in _PASSED_OVER and not e.is_symlink()
    ]
    for folder in folders:
        if not _is_component(folder):
            yield from _groups(folder)


def _read(path: Path, problems: Problems, *, named: bool) -> list[Document]:
    """The objects of a file, standard input or kustomization; of a broken file those documents that can be read.

    A file that was `named` holds manifests and nothing else.
    """
    if path.name == "Chart.yaml" and path.is_file():
        message = "a Helm chart: its templates are not manifests until Helm has rendered them"
        mend = f"helm template {path.parent} | serinus lint -"
        problems.extend([Problem(str(path), 1, "", message, mend, "warning", "unchecked", "file-helm-chart")])
        return []
    try:
        if str(path) == "-":
            text, file = sys.stdin.read(), "<stdin>"
        elif is_folder(path) or path.name in KUSTOMIZATIONS:
            return load_documents(path)
        elif not is_there(path):
            raise ConfigError(f"{path}: no such file or folder")  # noqa: TRY301
        else:
            text, file = read_text(path, is_named=named), str(path)
    except ConfigError as error:
        problems.extend([_unreadable(path, text) for text in error.problems])
        return []
    return _parse(text, file, path, problems, named=named)


def _parse(text: str, file: str, path: Path, problems: Problems, *, named: bool) -> list[Document]:
    try:
        found = load_text(text, file, patches=not named)
    except ConfigError as error:
        if _TEMPLATE.search(text):
            message = "a template of Helm, not a manifest until Helm has rendered it"
            problems.extend(
                [
                    Problem(
                        file,
                        1,
                        "",
                        message,
                        "helm template . | serinus lint -",
                        layer="file",
                        rule="file-helm-template",
                    )
                ]
            )
            return []
        found, looked = [], 0
        for chunk in _chunks(text):
            looked += len(chunk)
            if looked > _MOST_AGAIN:
                break
            try:
                found += load_text(chunk, file, patches=not named)
            except ConfigError as broken:
                problems.extend([_unreadable(path, said) for said in broken.problems])
        if not problems.errors:
            problems.extend([_unreadable(path, said) for said in error.problems])
    for document in found:
        # In a folder, values files and the like lie beside manifests; what names one of the two was meant to be one.
        if not _is_object(document) and (named or document.kind or document.api_version):
            missing = "apiVersion" if not document.api_version else "kind"
            problems.error(
                document,
                (missing,),
                "missing; every manifest names apiVersion and kind",
                f"add {missing}",
                rule="object-kind",
                layer="server",
            )
    if named and not found and not problems.errors:
        problems.extend([_unreadable(path, f"{file}: empty; expected a manifest such as an InferenceService")])
    return [document for document in found if _is_object(document)]


def _chunks(text: str) -> Iterator[str]:
    """The documents of a text one by one, each with as many empty lines before it as keep its lines' numbers."""
    lines: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines()):
        if line.rstrip() == "---" or line.startswith("--- "):
            yield "\n" * start + "\n".join(lines)
            lines, start = [], number + 1
        else:
            lines.append(line)
    yield "\n" * start + "\n".join(lines)
