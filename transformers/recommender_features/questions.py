"""A request for recommendations, checked whole: user ids, k, exclude_seen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

__all__ = ["MOST_K", "MOST_USERS", "BadQuestion", "Question", "ask_instances", "ask_tensor"]

MOST_USERS: Final = 1000
"""Users in one request; more would hold the event loop for longer than ~50 ms."""
MOST_K: Final = 100
_INTEGERS: Final = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")


class BadQuestion(ValueError):
    """The client's request is wrong; the message says what and how to mend it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked."""

    user_ids: tuple[int | str, ...]
    """As they came; text where they came as text."""
    k: int = 10
    exclude_seen: bool = True
    """Leave out what the user has rated already."""


def ask_tensor(datatype: str, shape: Sequence[int], values: Any, parameters: Mapping[str, Any]) -> Question:
    """Read the tensor `user_id`.

    Args:
        datatype: BYTES or any integer.
        shape: [n] or [n, 1].
        values: flat or shaped; bytes or text where BYTES.
        parameters: the request's; `k` and `exclude_seen` are read.

    Raises:
        BadQuestion: with what came and what was expected.
    """
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise BadQuestion(f"input 'user_id': shape {list(shape)} came, [n] was expected; send one id per row")
    _count(int(shape[0]))
    flat = np.asarray(values, object if datatype == "BYTES" else None).ravel().tolist()
    if len(flat) != shape[0]:
        raise BadQuestion(f"input 'user_id': shape {list(shape)} holds {shape[0]} values, data has {len(flat)}")
    if datatype == "BYTES":
        return _question([_text(value, f"input 'user_id', row {row}") for row, value in enumerate(flat)], parameters)
    if datatype not in _INTEGERS:
        raise BadQuestion(f"input 'user_id': datatype {datatype} came, INT64 or BYTES was expected")
    return _question([int(value) for value in flat], parameters)


def ask_instances(instances: Any, options: Mapping[str, Any]) -> Question:
    """Read V1 instances: objects with `user_id`, or bare ids; `k` and `exclude_seen` stand beside `instances`.

    Raises:
        BadQuestion: as `ask_tensor`.
    """
    if not isinstance(instances, list):
        raise BadQuestion(f"'instances': {type(instances).__name__} came, a list of objects with user_id was expected")
    _count(len(instances))
    found: list[int | str] = []
    for row, instance in enumerate(instances):
        where = f"instances[{row}]"
        if isinstance(instance, dict):
            extra = sorted(set(instance) - {"user_id"})
            if extra:
                raise BadQuestion(f"{where}: unknown key {extra[0]!r}; k and exclude_seen stand beside 'instances'")
            if "user_id" not in instance:
                raise BadQuestion(f"{where}: 'user_id' is missing")
            instance = instance["user_id"]
            where += ".user_id"
        if isinstance(instance, int) and not isinstance(instance, bool):
            found.append(instance)
        else:
            found.append(_text(instance, where))
    return _question(found, options)


def _count(rows: int) -> None:
    if not 1 <= rows <= MOST_USERS:
        raise BadQuestion(f"{rows} users came, 1 to {MOST_USERS} were expected; send several requests")


def _text(value: Any, where: str) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise BadQuestion(f"{where}: an id that is not UTF-8 came") from None
    if not isinstance(value, str):
        raise BadQuestion(f"{where}: {type(value).__name__} came, text or an integer was expected")
    if not value or len(value) > 128:
        raise BadQuestion(f"{where}: an id of {len(value)} characters came, 1 to 128 were expected")
    return value


def _question(ids: Sequence[int | str], parameters: Mapping[str, Any]) -> Question:
    k, exclude = parameters.get("k", 10), parameters.get("exclude_seen", True)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MOST_K:
        raise BadQuestion(f"parameter 'k': {k!r} came, an integer from 1 to {MOST_K} was expected")
    if not isinstance(exclude, bool):
        raise BadQuestion(f"parameter 'exclude_seen': {exclude!r} came, true or false was expected")
    return Question(tuple(ids), k, exclude)
