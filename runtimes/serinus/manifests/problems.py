"""What is wrong with a manifest: where, what, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from .documents import Document, FieldPath, Place, Source, field_text

__all__ = ["Layer", "Problem", "Problems", "in_one_line", "nearest"]

_MOST_CHARACTERS: Final = 1000
"""Of a field's name, of a message: longer than any that quotes honest values."""

Layer = Literal["server", "webhook", "controller", "ignored", "unchecked", "file"]
"""Who speaks, and when.

`server`: the API server refuses it (strict decoding, schema). `webhook`: KServe's webhook refuses it. `controller`: `kubectl apply` succeeds,
and the Deployment, Service, autoscaler, route or fetch that is made of it fails. `ignored`: accepted, and ignored, pruned or replaced.
`unchecked`: nobody looked. `file`: it cannot be read.
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. An error is what the API server, KServe's webhook or its controller refuses, or what cannot run here."""

    file: str
    line: int
    field: str
    message: str
    mend: str
    severity: Literal["error", "warning"] = "error"
    layer: Layer = "webhook"
    rule: str = ""
    """The rule's id, such as `scaling-hpa-metric`."""

    def __post_init__(self) -> None:
        """Shorten what quotes a value of any length."""
        for name in ("field", "message", "mend"):
            text = getattr(self, name)
            if len(text) > _MOST_CHARACTERS + 40:  # the words that say so, and are there when it is copied
                object.__setattr__(self, name, f"{text[:_MOST_CHARACTERS]}… ({len(text)} characters)")

    def __str__(self) -> str:
        kind = "" if self.severity == "error" else "warning: "
        where = f"{self.file}:{self.line}:{self.field}".rstrip(":")  # of a file as a whole there is no field
        return in_one_line(f"{where}: {kind}{self.message}: {self.mend}")

    def as_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def in_one_line(text: str) -> str:
    """Write a text, which may quote a manifest, as one line that a terminal shows.

    What is not printable is escaped: a key of a stranger's manifest could begin a line of its own, which is a command where GitHub Actions reads the output
    (`::warning::`), or move the cursor.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


class Problems:
    """Findings as they are made; all are shown together, in the order of the file."""

    def __init__(self) -> None:
        self._found: dict[Problem, None] = {}
        self._refused: set[tuple[str, str]] = set()

    def error(
        self, document: Document, path: FieldPath, message: str, mend: str, *, rule: str = "", layer: Layer = "webhook"
    ) -> None:
        """Note what will be refused, or never be ready."""
        field = field_text(path)
        if rule.startswith("structure-") and rule != "structure-type" and (document.file, field) in self._refused:
            return  # a rule has said why
        self._refused.add((document.file, field))
        self._add(document.place(path), Problem("", 0, field, message, mend, "error", layer, rule))

    def warn(
        self, document: Document, path: FieldPath, message: str, mend: str, *, rule: str = "", layer: Layer = "ignored"
    ) -> None:
        """Note what is accepted and does not do what it says."""
        self._add(document.place(path), Problem("", 0, field_text(path), message, mend, "warning", layer, rule))

    def error_at(self, source: Source, sub: FieldPath, message: str, mend: str) -> None:
        """Note what will be refused, in a value that several documents made."""
        self._add(source.place(*sub), Problem("", 0, source.field(*sub), message, mend, "error", "controller"))

    def _add(self, place: Place, problem: Problem) -> None:
        self._found[replace(problem, file=place.file, line=place.line)] = None

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
