"""What is wrong with a manifest: where, what, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .documents import Document, FieldPath, Place, Source, field_text

__all__ = ["Problem", "Problems", "nearest"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. An error is what the API server, KServe's webhook or its controller refuses, or what cannot run here."""

    file: str
    line: int
    field: str
    message: str
    mend: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        kind = "" if self.severity == "error" else "warning: "
        return f"{self.file}:{self.line}:{self.field}: {kind}{self.message}: {self.mend}"

    def as_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


class Problems:
    """Findings as they are made; all are shown together, in the order of the file."""

    def __init__(self) -> None:
        self._found: dict[Problem, None] = {}

    def error(self, document: Document, path: FieldPath, message: str, mend: str) -> None:
        """Note what will be refused."""
        self._add(document.place(path), field_text(path), message, mend, "error")

    def warn(self, document: Document, path: FieldPath, message: str, mend: str) -> None:
        """Note what is accepted and does not do what it says."""
        self._add(document.place(path), field_text(path), message, mend, "warning")

    def error_at(self, source: Source, sub: FieldPath, message: str, mend: str) -> None:
        """Note what will be refused, in a value that several documents made."""
        self._add(source.place(*sub), source.field(*sub), message, mend, "error")

    def _add(self, place: Place, name: str, message: str, mend: str, severity: Literal["error", "warning"]) -> None:
        self._found[Problem(place.file, place.line, name, message, mend, severity)] = None

    def extend(self, problems: Iterable[Problem]) -> None:
        """Take over findings made elsewhere."""
        self._found.update(dict.fromkeys(problems))

    @property
    def all(self) -> tuple[Problem, ...]:
        """Every finding, by file and line."""
        return tuple(sorted(self._found, key=lambda problem: (problem.file, problem.line)))

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The findings that forbid a start."""
        return tuple(problem for problem in self.all if problem.severity == "error")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be, if any."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return near[0] if near else None
