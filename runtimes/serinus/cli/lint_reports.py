"""Findings of `serinus lint` in the forms that people and tools read: text, JSON, SARIF, GitHub's annotations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Literal

from ..manifests.problems import Problem
from ..manifests.reading import Checked

__all__ = ["Form", "render"]

Form = Literal["text", "json", "sarif", "github"]

_SAID = {
    "server": "the API server refuses it",
    "webhook": "KServe's webhook refuses it",
    "controller": "accepted; what is made of it fails",
    "ignored": "accepted, and does not do what it says",
    "unchecked": "not checked",
    "file": "cannot be read",
}
"""What happens, by layer."""


def render(checked: Checked, form: Form, version: str) -> str:
    """All findings as one text.

    Args:
        checked: what was found.
        form: `text` (a line a finding and a last line that counts), `json` (a list), `sarif` (2.1.0), `github` (workflow commands).
        version: serinus' own, for SARIF.
    """
    if form == "json":
        return json.dumps([problem.as_json() for problem in checked.problems], indent=2)
    if form == "sarif":
        return json.dumps(_sarif(checked.problems, version), indent=2)
    if form == "github":
        return "\n".join([*map(_annotation, checked.problems), summary(checked)])
    return "\n".join([*(f"{problem} [{_SAID[problem.layer]}]" for problem in checked.problems), summary(checked)])


def summary(checked: Checked) -> str:
    """The last line: how many findings, objects and files."""
    errors = sum(problem.severity == "error" for problem in checked.problems)
    counts = (
        (errors, "error"),
        (len(checked.problems) - errors, "warning"),
        (checked.objects, "object"),
        (len(checked.files), "file"),
    )
    found, warned, objects, files = (f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
    return f"{found}, {warned} in {objects} of {files}"


def _annotation(problem: Problem) -> str:
    """A workflow command of GitHub Actions; source: docs.github.com, Workflow commands."""

    def escape(text: str, *, inside: bool = False) -> str:
        text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        return text.replace(":", "%3A").replace(",", "%2C") if inside else text

    place = f"file={escape(problem.file, inside=True)},line={problem.line},title={escape(problem.rule or 'serinus', inside=True)}"
    return f"::{problem.severity} {place}::{escape(_words(problem))}"


def _words(problem: Problem) -> str:
    head = f"{problem.field}: " if problem.field else ""
    return f"{head}{problem.message}: {problem.mend} ({_SAID[problem.layer]})"


def _sarif(problems: Sequence[Problem], version: str) -> dict[str, Any]:
    """A log of the Static Analysis Results Interchange Format 2.1.0 (OASIS)."""
    rules = sorted({problem.rule or "plan" for problem in problems})
    results = [
        {
            "ruleId": problem.rule or "plan",
            "ruleIndex": rules.index(problem.rule or "plan"),
            "level": problem.severity,
            "message": {"text": _words(problem)},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": PurePath(problem.file).as_posix()},
                        "region": {"startLine": problem.line},
                    },
                    "logicalLocations": [{"fullyQualifiedName": problem.field}] if problem.field else [],
                }
            ],
            "properties": {"layer": problem.layer},
        }
        for problem in problems
    ]
    driver = {"name": "serinus lint", "version": version, "rules": [{"id": rule} for rule in rules]}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
