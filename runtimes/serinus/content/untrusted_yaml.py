"""YAML that came with a model: read for no more than its text is long.

Theory of operation. PyYAML's safe loader runs no code, and can still be had for everything else: merge keys copy what they name, so ten lines that
name one another nine times each are billions of pairs; and libyaml's composer ends the process over deep nesting. Both are found in the
stream of events, before anything is made of it. Aliases alone are references and cost nothing, until somebody walks the document or tells a value in a
message; so what they would be, written out, is bounded as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import yaml

__all__ = ["load_untrusted"]

_MOST_DIGITS: Final = 400
"""A float64 has 309 before its point."""
_NUMBER: Final = re.compile(r"[-+]?[\d_:.]+")
"""Of such a text PyYAML may make a number, and of sixties (`1:59:59`, YAML 1.1) each costs as much as all before it."""

_MOST_DEPTH: Final = 64
"""Levels; MLflow writes 6, TorchServe's examples have 4."""
_MOST_VALUES: Final = 1_000_000
"""More than a file of 4 MiB holds by itself, nearly."""


def load_untrusted(text: str | bytes) -> Any:
    """Give what a document says.

    Args:
        text: one document; its size is bounded by who has read it.

    Raises:
        yaml.MarkedYAMLError: it is no YAML; says where.
        ValueError: likewise, or it is nested too deep or has merge keys.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_form(yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)  # noqa: S506 # either is a safe one
    except RecursionError:
        raise ValueError(f"nested too deep; at most {_MOST_DEPTH} levels are read") from None
    except yaml.MarkedYAMLError:
        raise
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _check_form(events: Iterable[yaml.Event]) -> None:
    """Count values and levels as they are with each alias written out, for whoever walks the document or puts it into words."""
    open_ones: list[tuple[str | None, list[int]]] = []
    """Anchors of the collections that have begun, their values and their height so far."""
    anchors: dict[str, tuple[int, int]] = {}

    def add(values: int, height: int) -> None:
        if open_ones:
            within = open_ones[-1][1]
            within[0] += values
            within[1] = max(within[1], height + 1)
            values, height = within[0], len(open_ones) + height
        if height > _MOST_DEPTH:
            raise ValueError(f"nested too deep; at most {_MOST_DEPTH} levels are read")
        if values > _MOST_VALUES:
            raise ValueError(f"has more than {_MOST_VALUES} values with its aliases written out")

    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            open_ones.append((event.anchor, [1, 1]))
            add(0, 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, (values, height) = open_ones.pop()
            if anchor is not None:
                anchors[anchor] = values, height
            add(values, height)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise ValueError(
                    f"the alias *{event.anchor} names what is not there before it, or what it is a part of"
                )
            add(*anchors[event.anchor])
        elif isinstance(event, yaml.ScalarEvent):
            if event.value == "<<" or event.tag == "tag:yaml.org,2002:merge":
                raise ValueError("has a merge key ('<<'), which nothing that writes such a file makes")
            if len(event.value) > _MOST_DIGITS and _NUMBER.fullmatch(event.value):
                raise ValueError(f"has a number of {len(event.value)} digits; at most {_MOST_DIGITS} are read")
            if event.anchor is not None:
                anchors[event.anchor] = 1, 0
            add(1, 0)
