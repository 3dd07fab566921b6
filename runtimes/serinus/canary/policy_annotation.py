"""A policy beside what it judges: the annotation `serinus.dev/canary-policy` of an InferenceService.

Its text is a policy's YAML, or the short form: what differs from the default policy, `steps=5/25/100; errors.margin_percentage_points=1; score=off`.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from ..errors import ConfigError
from .policy import DEFAULT_POLICY, Policy, parse_policy

__all__ = ["POLICY_ANNOTATION", "parse_annotation"]

POLICY_ANNOTATION: Final = "serinus.dev/canary-policy"

_GUARDRAILS: Final = ("errors", "latency", "score", "rates", "means")
_SHORT: Final = re.compile(r"\s*[\w.-]+\s*=")
"""How a short form begins; a policy's YAML begins with a key and a colon, or a comment."""
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)


def parse_annotation(text: str, place: str) -> Policy:
    """Read an annotation's policy.

    Args:
        text: YAML, or the short form.
        place: whose it is, for messages.

    Raises:
        ConfigError: as `parse_policy`; of a short form's part that is no KEY=VALUE, too.
    """
    name = f"annotation {POLICY_ANNOTATION} of {place}"
    return parse_policy(_expanded(text, name) if _SHORT.match(text) else text, name)


def _expanded(text: str, name: str) -> str:
    document: dict[str, Any] = yaml.safe_load(DEFAULT_POLICY.read_text(encoding="utf-8"))
    for part in re.split(r"[;,\n]", text):
        if not part.strip():
            continue
        key, equals, value = (each.strip() for each in part.partition("="))
        path = key.split(".")
        if not equals or not value or not all(path):
            raise ConfigError(
                f"{name}: {part.strip()[:60]!r}; KEY=VALUE was expected, such as steps=10/50/100, errors.margin_percentage_points=1 or score=off"
            )
        if path[0] in _GUARDRAILS:
            path.insert(0, "guardrails")
        *parents, last = path
        at = document
        for each in parents:
            found = at.get(each)
            if found is None:
                found = at[each] = {}
            if not isinstance(found, dict):
                raise ConfigError(f"{name}: {key}: {each} has one value, and no keys of its own")
            at = found
        if value == "off" and path[0] == "guardrails":
            at.pop(last, None)
        else:
            at[last] = [_scalar(each.strip()) for each in value.split("/")] if "/" in value else _scalar(value)
    return yaml.safe_dump(document, sort_keys=False)


def _scalar(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if not _NUMBER.match(text):
        return text
    return int(text) if text.isdigit() else float(text)
