"""The fraud combiner: calibrated log-odds blend, rules with precedence, decisions with reasons.

Everything is computed for all rows at once; the only step that goes row by row is looking ids up in the set of blocked ones. The
reasons of a row are a bit per rule; each combination's text is made once and kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from serinus.errors import InvalidInput, ModelFailed
from serinus.protocol.types import TensorSpec

from .combiners import CombinerContext
from .document import Checker, Where

__all__ = ["FraudCombiner"]

_ACTIONS: Final = ("approve", "review", "decline")
"""By severity."""
_DECISIONS: Final = np.array([action.encode() for action in _ACTIONS], dtype=object)
_CLIP: Final = 1e-7
"""Probabilities are kept this far from 0 and 1: float32 has no more to say there, and log-odds stay within +-16."""
_KINDS: Final = ("blocked_terminal", "amount_limit", "velocity_limit", "anomaly")
"""By precedence."""
_LIMIT_KEYS: Final = ("input", "column", "limit")
_OWN_KEYS: Final = {"blocked_terminal": ("input", "column", "values", "values_file"), "anomaly": ("member", "limit")}
"""What a rule says beside `rule`, `action`, `code` and `floor`."""
_MAX_BITS: Final = 61
"""Rules' reasons are bits of an int64, and the score takes two."""


@dataclass(frozen=True, slots=True)
class _Blend:
    """One member's share: `weight * (a * z + b)`."""

    member: str
    slope: float
    """weight * a"""
    offset: float
    """weight * b"""
    is_probability: bool


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule; `_fires` maps the values of its input, or of its member's score, to bool [n]."""

    kind: str
    input: str
    """Of a rule on a tensor of the request; empty: `member` says whose score it looks at."""
    column: int | None
    action: int
    code: str
    floor: bool
    limit: float = 0.0
    blocked: frozenset[bytes] = frozenset()
    member: str = ""


class FraudCombiner:
    """Combines members into `score`, `decision` and `reasons`; its parameters are the README's."""

    outputs: Sequence[TensorSpec] = (
        TensorSpec("score", "FP32", (-1,)),
        TensorSpec("decision", "BYTES", (-1,)),
        TensorSpec("reasons", "BYTES", (-1,)),
    )

    def __init__(self, context: CombinerContext, parameters: Mapping[str, Any]) -> None:
        checker, where = context.checker, context.where
        values = checker.keys(
            dict(parameters), where, ("blend", "thresholds", "rules", "contributions"), ("blend", "thresholds")
        )
        self._bias, self._blend = _read_blend(checker, (*where, "blend"), values.get("blend") or {}, context)
        self._review, self._decline = _read_thresholds(checker, (*where, "thresholds"), values.get("thresholds") or {})
        self._rules = _read_rules(context, values)
        self._explained, self._top = _read_contributions(checker, (*where, "contributions"), values, context)
        self._features: Sequence[str] = ()
        self._codes = [*(rule.code for rule in self._rules), "SCORE_DECLINE", "SCORE_REVIEW"]
        self._texts: dict[int, bytes] = {0: b""}
        scored = [*(blend.member for blend in self._blend), *(rule.member for rule in self._rules if rule.member)]
        plain = dict.fromkeys(scored, ("score",))
        self._needs: Mapping[str, tuple[str, ...]] = plain
        self._needs_explained = {**plain, self._explained: (*plain.get(self._explained, ()), "contributions")}

    def bind(self, features: Mapping[str, Sequence[str]]) -> None:
        """Take the members' feature names: those of the explaining one name reasons."""
        self._features = features.get(self._explained, ())

    def needs(self, parameters: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
        """Ask for contributions only where the request does."""
        return self._needs_explained if self._wanted_reasons(parameters) else self._needs

    def combine(
        self,
        members: Mapping[str, Mapping[str, np.ndarray]],
        inputs: Mapping[str, np.ndarray],
        parameters: Mapping[str, Any],
        rows: int,
    ) -> Mapping[str, np.ndarray]:
        """Make score, decision and reasons of a batch."""
        score = self._score(members, rows)
        outcome, bits = self._decide(score, members, inputs, rows)
        texts = self._texts
        try:
            reasons = [texts[pattern] for pattern in bits.tolist()]
        except KeyError:
            reasons = [texts.get(pattern) or self._text(pattern) for pattern in bits.tolist()]
        top = self._wanted_reasons(parameters)
        if top:
            reasons = self._with_features(reasons, members[self._explained]["contributions"], top)
        column = np.empty(rows, dtype=object)
        column[:] = reasons
        return {"score": score, "decision": _DECISIONS[outcome], "reasons": column}

    def _score(self, members: Mapping[str, Mapping[str, np.ndarray]], rows: int) -> np.ndarray:
        """The blend, float32 [n]. In float64: a sum of log-odds of +-16 in float32 would move scores near 0 and 1."""
        total = np.full(rows, self._bias)
        for blend in self._blend:
            raw = members[blend.member]["score"]
            z = (raw if raw.ndim == 1 else raw[:, -1]).astype(np.float64)
            if blend.is_probability:
                # maximum and minimum: np.clip costs 10 us more a call, and most batches are one row.
                z = np.minimum(np.maximum(z, _CLIP), 1.0 - _CLIP)
                z = np.log(z / (1.0 - z))
            total += blend.slope * z + blend.offset
        # exp overflows at 709.
        return (1.0 / (1.0 + np.exp(np.minimum(-total, 700.0)))).astype(np.float32)

    def _decide(
        self,
        score: np.ndarray,
        members: Mapping[str, Mapping[str, np.ndarray]],
        inputs: Mapping[str, np.ndarray],
        rows: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Severity and fired rules of each row: int8 [n], int64 [n] with bit i for code i."""
        outcome = np.zeros(rows, np.int8)
        floor = np.zeros(rows, np.int8)
        bits = np.zeros(rows, np.int64)
        open_rows = np.ones(rows, np.bool_)
        for index, rule in enumerate(self._rules):
            values = members[rule.member]["score"] if rule.member else inputs.get(rule.input)
            if values is None:
                continue
            fired = _fires(rule, values, rows)
            if not fired.any():
                continue
            bits[fired] |= 1 << index
            newly = fired & open_rows
            if rule.floor:
                floor[newly] = np.maximum(floor[newly], rule.action)
            else:
                outcome[newly] = np.maximum(floor[newly], rule.action)
                open_rows &= ~fired
        count = len(self._rules)
        declined = score >= self._decline
        reviewed = (score >= self._review) & ~declined
        bits += declined * (1 << count)
        bits += reviewed * (1 << (count + 1))
        level = declined.view(np.int8) * np.int8(2) + reviewed.view(np.int8)
        np.maximum(level, floor, out=outcome, where=open_rows)
        return outcome, bits

    def _text(self, pattern: int) -> bytes:
        codes = [code for index, code in enumerate(self._codes) if pattern >> index & 1]
        text = ";".join(dict.fromkeys(codes)).encode()
        if len(self._texts) < 4096:
            self._texts[pattern] = text
        return text

    def _with_features(self, reasons: list[bytes], contributions: np.ndarray, top: int) -> list[bytes]:
        """Add the features that raised each row's score most; the last column is the bias."""
        shares = contributions.reshape(len(reasons), -1)[:, :-1]
        top = min(top, shares.shape[1])
        order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
        named = []
        for reason, columns, row in zip(reasons, order.tolist(), shares, strict=True):
            features = [f"+{self._feature(column)}".encode() for column in columns if row[column] > 0]
            named.append(b";".join([reason, *features] if reason else features))
        return named

    def _feature(self, column: int) -> str:
        return self._features[column] if column < len(self._features) else f"f{column}"

    def _wanted_reasons(self, parameters: Mapping[str, Any]) -> int:
        """How many features the request wants named: its parameter `explain`, true or a number."""
        asked = parameters.get("explain")
        if asked is None or asked is False:
            return 0
        if not self._explained:
            raise InvalidInput(
                "parameter 'explain': this ensemble has no member that explains (combiner 'contributions')"
            )
        if asked is True:
            return self._top
        if not isinstance(asked, int) or asked < 0:
            raise InvalidInput(f"parameter 'explain' is {asked!r}; true, or how many features to name, was expected")
        return asked


def _fires(rule: _Rule, values: np.ndarray, rows: int) -> np.ndarray:
    """Apply one rule to all rows: bool [n]."""
    if rule.column is not None:
        values = values[:, rule.column]
    elif rule.member and values.ndim == 2:
        values = values[:, -1]
    values = values.reshape(rows)
    if rule.kind == "blocked_terminal":
        return np.array([value in rule.blocked for value in values.tolist()], np.bool_)
    if values.dtype.kind == "f":
        missing = values != values
        if missing.any():
            row = int(np.argmax(missing))
            if rule.member:
                raise ModelFailed(f"member {rule.member!r}, row {row}: its score is NaN")
            raise InvalidInput(
                f"input {rule.input!r}, row {row}: NaN cannot be held against the limit of {rule.limit:g}"
            )
    return values > rule.limit


def _read_blend(
    checker: Checker, where: Where, value: Any, context: CombinerContext
) -> tuple[float, tuple[_Blend, ...]]:
    values = checker.keys(value, where, ("bias", "members"), ("members",))
    names = [member.name for member in context.spec.members]
    found = []
    members = checker.take(values, where, "members", dict, {})
    for name, entry in members.items():
        place = (*where, "members", name)
        if name not in names:
            checker.problem(place, f"is no member; members are {', '.join(names)}")
        share = checker.keys(entry or {}, place, ("weight", "scale", "platt"))
        platt = checker.keys(share.get("platt") or {}, (*place, "platt"), ("a", "b"))
        weight = checker.take(share, place, "weight", float, 1.0)
        scale = checker.choice(share, place, "scale", ("probability", "margin"), "probability")
        a = checker.take(platt, (*place, "platt"), "a", float, 1.0)
        b = checker.take(platt, (*place, "platt"), "b", float, 0.0)
        found.append(_Blend(str(name), weight * a, weight * b, scale == "probability"))
    if not members:
        checker.problem(where, "blends no member")
    return checker.take(values, where, "bias", float, 0.0), tuple(found)


def _read_thresholds(checker: Checker, where: Where, value: Any) -> tuple[float, float]:
    values = checker.keys(value, where, ("review", "decline"), ("review", "decline"))
    review = checker.take(values, where, "review", float, 1.0)
    decline = checker.take(values, where, "decline", float, 1.0)
    if not 0.0 <= review <= decline <= 1.0:
        checker.problem(where, f"review {review:g} and decline {decline:g}: 0 <= review <= decline <= 1 was expected")
    return review, decline


def _read_rules(context: CombinerContext, parameters: Mapping[str, Any]) -> tuple[_Rule, ...]:
    checker = context.checker
    found = []
    for index, entry in enumerate(checker.take(parameters, context.where, "rules", list, [])):
        where = (*context.where, "rules", index)
        kind = entry.get("rule") if isinstance(entry, dict) else None
        own = _OWN_KEYS.get(kind, _LIMIT_KEYS) if isinstance(kind, str) else _LIMIT_KEYS
        required = [key for key in own if key in ("input", "member", "limit")]
        values = checker.keys(entry, where, ("rule", "action", "code", "floor", *own), ("rule", "action", *required))
        kind = checker.choice(values, where, "rule", _KINDS, _KINDS[0])
        action = checker.choice(values, where, "action", _ACTIONS, "review")
        rule = _Rule(
            kind,
            checker.take(values, where, "input", str, ""),
            None,
            _ACTIONS.index(action),
            checker.take(values, where, "code", str, kind.upper()),
            checker.take(values, where, "floor", bool, False),
            limit=checker.take(values, where, "limit", float, 0.0),
            member=checker.take(values, where, "member", str, "") if kind == "anomaly" else "",
        )
        if ";" in rule.code or not rule.code:
            checker.problem((*where, "code"), "a code is not empty and holds no ';', which separates codes")
        if kind == "blocked_terminal":
            rule = dataclasses.replace(rule, blocked=_read_blocked(context, where, index, values))
        if kind == "anomaly":
            _check_member(context, (*where, "member"), rule.member)
        else:
            rule = dataclasses.replace(rule, column=_rule_column(checker, where, values, rule, context))
        found.append(rule)
    if len(found) > _MAX_BITS:
        checker.problem((*context.where, "rules"), f"{len(found)} rules; at most {_MAX_BITS}")
    rank: Callable[[_Rule], int] = lambda rule: _KINDS.index(rule.kind)  # noqa: E731 # a key, named for its type
    return tuple(sorted(found, key=rank))


def _read_blocked(context: CombinerContext, where: Where, index: int, values: Mapping[str, Any]) -> frozenset[bytes]:
    checker = context.checker
    listed = checker.take(values, where, "values", list, [])
    file = checker.take(values, where, "values_file", str, "")
    if ("values" in values) == ("values_file" in values):
        checker.problem(where, "one of 'values' and 'values_file' was expected")
    if file:
        listed = context.read_lines(file, ("rules", index, "values_file"))
    return frozenset(str(value).encode() for value in listed)


def _rule_column(
    checker: Checker, where: Where, values: Mapping[str, Any], rule: _Rule, context: CombinerContext
) -> int | None:
    """Check the rule's input; the index of its column where one is named."""
    inputs = {spec.name: spec for spec in context.spec.inputs}
    spec = inputs.get(rule.input)
    column = values.get("column")
    if spec is None:
        if rule.input:
            checker.problem((*where, "input"), f"{rule.input!r} is none of the inputs: {', '.join(inputs)}")
        return None
    if (rule.kind == "blocked_terminal") != (spec.datatype == "BYTES"):
        wanted = "BYTES" if rule.kind == "blocked_terminal" else "numbers"
        checker.problem((*where, "input"), f"{rule.input!r} is {spec.datatype}; {rule.kind} takes {wanted}")
    if column is None:
        if len(spec.shape) == 2 and spec.shape[1] != 1:
            checker.problem(
                where, f"{rule.input!r} has shape {list(spec.shape)}; 'column' must name one of its columns"
            )
        return None
    if isinstance(column, str):
        if column in spec.columns:
            return spec.columns.index(column)
        checker.problem((*where, "column"), f"{column!r} is none of the columns that inputs give {rule.input!r}")
    elif (
        type(column) is not int
        or len(spec.shape) != 2
        or column < 0
        or (spec.shape[1] != -1 and column >= spec.shape[1])
    ):
        checker.problem((*where, "column"), f"{column!r} is no column of {rule.input!r}, shape {list(spec.shape)}")
    else:
        return column
    return None


def _read_contributions(
    checker: Checker, where: Where, values: Mapping[str, Any], context: CombinerContext
) -> tuple[str, int]:
    entry = values.get("contributions")
    if entry is None:
        return "", 0
    checked = checker.keys(entry, where, ("member", "top"), ("member",))
    member = checker.take(checked, where, "member", str, "")
    top = checker.take(checked, where, "top", int, 3)
    if top < 1:
        checker.problem((*where, "top"), f"is {top}; at least 1")
    _check_member(context, (*where, "member"), member)
    return member, top


def _check_member(context: CombinerContext, place: Where, member: str) -> None:
    names = [spec.name for spec in context.spec.members]
    if member and member not in names:
        context.checker.problem(place, f"{member!r} is no member; members are {', '.join(names)}")
