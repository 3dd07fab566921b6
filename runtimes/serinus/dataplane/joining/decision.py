"""Whether rows of several requests to a model are joined: who may say no, what is checked, and where the result is saved.

Theory of operation. A no always wins: of the owner (`batchable: false`, `max_batch_size: 0`), of the file (a first dimension that is fixed,
symbolic names that differ), of a class's author. A class whose author wrote `predict` is believed when it says yes
(`Model.batching` "declared"). A runtime that serves any file ("earned") cannot know, so `independence` finds out at start, for each
function of the model that could be batched, through the very predict that will serve: this process's or the worker's. What fails, or
cannot be found out (inputs that are not declared, random inputs that are refused, no time, no warm-up), is never joined.

The owner's yes (`batchable: true`) is about what the check cannot know: it stands where the check comes to no result, and lets rounding be as
coarse as in half precision (1e-2). Where rows are seen to depend on one another, the check wins, with a warning: otherwise callers would
get one another's numbers.

The record is found by all that decides the answers: checksums of the files, versions, settings (`Model.provenance`), where
`serinus.verification_records` says; a later start that finds it predicts nothing. "Not in time" is not saved.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from ... import __version__, verification_records
from ...artifacts import declares_no_batch
from ...errors import SerinusError
from ...model import Call, Model, Provenance
from ...protocol.types import NO_PARAMETERS, Signature, TensorSpec
from ...settings import ModelSettings
from ..execution.executor import Predict
from .independence import CHECK, LARGEST, TOLERANCES, Finding, examine
from .sampling import scenes

__all__ = ["Batching", "decide", "first_dimension", "settle"]

_log = logging.getLogger("serinus.model")

_OWNER: Final = "its settings say 'batchable'"
_RECORD: Final = "batching"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Batching:
    """What was decided on a model."""

    joined: bool
    reason: str
    """For people: why, either way."""
    signatures: Mapping[str, str] = field(default_factory=lambda: NO_PARAMETERS)
    """Signatures that are predicted alone all the same, and why."""
    doubtful: bool = False
    """The owner's yes was overruled."""


def settle(
    model: Model,
    settings: ModelSettings,
    trial: Callable[[], AbstractContextManager[Predict]],
    clock: Callable[[], float],
    *,
    told: Callable[[bool], None] | None = None,
) -> None:
    """Decide how a loaded model is batched, tell it, and say so in its details and the log.

    Args:
        model: not a `RequestModel`.
        settings: as given; `model.settings` may be others.
        trial: gives the predict to check, for as long as the check takes.
        clock: seconds.
        told: tells processes that hold the model likewise.
    """
    if model.batching == "declared" and settings.batchable is not False:
        return

    def tell(joined: bool) -> None:
        model.join_rows(joined)
        if told is not None:
            told(joined)

    could = model.batchable
    tell(False)
    decided = decide(model, settings, trial, clock, could=could)
    if decided.joined:
        tell(True)
    model.unbatched_signatures = decided.signatures
    model.details["batching"] = "joined" if decided.joined else "alone"
    model.details["batching_reason"] = decided.reason
    for name, reason in decided.signatures.items():
        _log.info("model '%s': each request of signature '%s' is predicted alone: %s", model.name, name, reason)
    level = logging.WARNING if decided.doubtful else logging.INFO
    how = "rows of several requests are joined" if decided.joined else "each request is predicted alone"
    _log.log(level, "model '%s': %s: %s", model.name, how, decided.reason)


def decide(
    model: Model,
    settings: ModelSettings,
    trial: Callable[[], AbstractContextManager[Predict]],
    clock: Callable[[], float],
    *,
    could: bool,
) -> Batching:
    """Decide how a model is batched; arguments as of `settle`, and what `batchable` was when the model was loaded."""
    if settings.batchable is False:
        return Batching(False, f"{_OWNER}: false")
    if declares_no_batch(settings.model_dir):
        return Batching(False, "config.pbtxt beside it says max_batch_size: 0")
    sure = settings.batchable is True
    if not model.inputs:
        why = "its inputs are not declared, so nothing was checked; name them in model-settings.json"
        return Batching(True, f"{_OWNER}: true; {why}") if sure else Batching(False, why)
    fixed = first_dimension(model.inputs, model.outputs)
    if fixed or not could:
        return Batching(False, model.unbatchable_reason or fixed or "its runtime says that it is not batchable")
    if settings.batch.max_batch_rows <= 1:
        return Batching(False, "max_batch_rows is 1")
    functions = {"": Signature(tuple(model.inputs), tuple(model.outputs))}
    functions |= {
        name: signature
        for name, signature in model.signatures.items()
        if name != model.default_signature and not first_dimension(signature.inputs, signature.outputs)
    }
    most_rows = min(settings.batch.max_batch_rows, LARGEST)
    files = _digests(model.provenance) if model.provenance is not None else []
    key = _key(model, model.provenance, functions, sure, most_rows, files) if model.provenance is not None else ""
    found = _load_record(model.provenance, key) if model.provenance is not None else None
    if found is None:
        if not settings.warmup:
            why = "warm-up is off, so nothing was checked"
            return Batching(True, f"{_OWNER}: true; {why}") if sure else Batching(False, why)
        found = _check(model, functions, sure, trial, clock, most_rows)
        if model.provenance is not None and all(finding.outcome != "late" for finding in found.values()):
            _save_record(model, model.provenance, key, files, found)
    return _judge(found, sure)


def first_dimension(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Say which tensor's first dimension cannot be that of rows; empty: none's."""
    for kind, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            if not spec.shape or spec.shape[0] != -1:
                return f"{kind} '{spec.name}' has shape {list(spec.shape)}, whose first dimension is not free"
    return ""


def _judge(found: Mapping[str, Finding], sure: bool) -> Batching:
    def joined(finding: Finding) -> bool:
        return finding.outcome == "independent" or (sure and finding.outcome in ("refused", "late"))

    own = found[""]
    doubtful = sure and own.outcome == "dependent"
    reason = f"{_OWNER}: true; {own.reason}" if sure else own.reason
    if own.outcome == "dependent" and sure:
        reason = f"{_OWNER}: true, but {own.reason}"
    alone = {name: finding.reason for name, finding in found.items() if name and not joined(finding)}
    return Batching(joined(own), reason, alone if joined(own) else NO_PARAMETERS, doubtful)


def _check(
    model: Model,
    functions: Mapping[str, Signature],
    sure: bool,
    trial: Callable[[], AbstractContextManager[Predict]],
    clock: Callable[[], float],
    most_rows: int,
) -> dict[str, Finding]:
    _log.info(
        "model '%s': checking whether rows are independent; what the framework now logs of refused inputs is part of it",
        model.name,
    )
    found: dict[str, Finding] = {}
    try:
        with trial() as predict:
            for name, signature in functions.items():
                found[name] = _function(model, name, signature, predict, sure, clock, most_rows)
                if not name and found[""].outcome == "dependent":
                    break
    except SerinusError as error:  # the process that the check wants for itself
        late = Finding("late", f"whether rows are independent could not be checked: {error}", 0)
        found |= {name: late for name in functions if name not in found}
    return found


def _function(
    model: Model,
    name: str,
    signature: Signature,
    predict: Predict,
    sure: bool,
    clock: Callable[[], float],
    most_rows: int,
) -> Finding:
    parameters = {"signature_name": name} if name else NO_PARAMETERS
    wanted = frozenset(spec.name for spec in signature.outputs)
    call = Call(parameters, wanted if any(spec.optional for spec in signature.outputs) else None)

    def ask(rows: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        return predict(rows, call)

    return examine(
        ask,
        scenes(signature.inputs, model.warmup_inputs() if not name else None),
        clock=clock,
        datatypes=(
            model.computes_in,
            *(spec.datatype for spec in signature.inputs),
            *(spec.datatype for spec in signature.outputs if spec.datatype == "BF16"),
        ),
        least_tolerance=TOLERANCES["FP16"] if sure else 0.0,
        most_rows=most_rows,
    )


def _digests(provenance: Provenance) -> list[tuple[str, str]]:
    """The name and SHA-256 of each of the model's files."""
    return [(name, _sha256(path)) for path in provenance.files for name, path in _files(path)]


def _key(
    model: Model,
    provenance: Provenance,
    functions: Mapping[str, Signature],
    sure: bool,
    most_rows: int,
    files: Sequence[tuple[str, str]],
) -> str:
    """Digest all that the record holds for."""
    known = {
        "check": CHECK,
        "serinus": __version__,
        "sure": sure,
        "most_rows": most_rows,
        "computes_in": model.computes_in,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "facts": dict(provenance.facts),
        "functions": {
            name: [[(spec.name, spec.datatype, spec.shape, spec.optional) for spec in specs] for specs in pair]
            for name, pair in ((name, (each.inputs, each.outputs)) for name, each in functions.items())
        },
        "files": files,
    }
    return hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Give a file, or all files of a folder but what is kept there about it."""
    if not path.is_dir():
        yield path.name, path
        return
    for child in sorted(path.rglob("*")):
        if child.is_file() and not child.name.startswith(".") and not child.name.endswith(".verdict.json"):
            yield str(child.relative_to(path)), child


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as body:
        for chunk in iter(partial(body.read, _CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _load_record(provenance: Provenance, key: str) -> dict[str, Finding] | None:
    for body in verification_records.load(verification_records.paths(provenance.files[0], key, _RECORD)):
        if body.get("sha256") != key:
            continue
        try:
            found = {name: Finding(one["outcome"], one["reason"], 0) for name, one in body["functions"].items()}
        except (AttributeError, KeyError, TypeError):
            continue
        if "" in found and all(
            finding.outcome in ("independent", "dependent", "refused") for finding in found.values()
        ):
            return found
    return None


def _save_record(
    model: Model, provenance: Provenance, key: str, files: Sequence[tuple[str, str]], found: Mapping[str, Finding]
) -> None:
    functions = {name: {"outcome": finding.outcome, "reason": finding.reason} for name, finding in found.items()}
    files_sha256 = hashlib.sha256(orjson.dumps(files)).hexdigest()
    body = {"about": "batching", "sha256": key, "files_sha256": files_sha256, "functions": functions}
    if verification_records.save(verification_records.paths(provenance.files[0], key, _RECORD), body) is None:
        _log.warning("model '%s': what was found can be saved nowhere, so every start checks its rows", model.name)
