"""Predictor, transformer and explainer: what the webhook refuses.

Source: `inference_service_validation.go` and `component.go` of KServe 0.21; the numbers are those of the rules as the project's
notes on KServe list them (E, webhook).
"""

from __future__ import annotations

from ..conventions import KSERVE_CONTAINER, NAME, implementations
from ..fields import mapping, whole_number
from .rule import Block, Findings, Rule

__all__ = ["COMPONENT_RULES"]


def name_inside_model(block: Block) -> Findings:
    """KServe names the container of a model by itself (6)."""
    if block.part != "predictor":
        return
    for name in implementations(block.value):
        if name != "containers" and mapping(block.value.get(name)).get("name"):
            yield (*block.path, name, "name"), f"name is not allowed inside {name}", "remove it; KServe sets it"


def one_implementation(block: Block) -> Findings:
    """A component has exactly one implementation (9)."""
    part = block.part
    if part == "predictor":
        found = implementations(block.value)
    else:
        found = [name for name in ("art", "containers") if block.value.get(name)]
    if not found:
        mend = "add model: or containers:" if part == "predictor" else "add containers:"
        yield block.path, f"{part} has no implementation", mend
    elif len(found) == 2 and found[1] == "model" and not block.is_canary:
        return  # see `model_replaced`
    elif len(found) > 1:
        yield (
            (*block.path, found[-1]),
            f"{part} has {len(found)} implementations: {', '.join(found)}",
            f"keep one; beside model, a container must not be called {KSERVE_CONTAINER}",
        )


def model_replaced(block: Block) -> Findings:
    """The defaulting webhook writes a legacy block over `model` before anybody counts; seen on a real control plane."""
    found = implementations(block.value) if block.part == "predictor" and not block.is_canary else []
    if len(found) == 2 and found[1] == "model":
        yield (*block.path, "model"), f"is replaced by {found[0]} without a word", "keep one"


def replicas_not_negative(block: Block) -> Findings:
    """Counts of replicas and concurrent requests are 0 or more (11)."""
    for key in ("containerConcurrency", "minReplicas", "maxReplicas"):
        value = whole_number(block.value.get(key))
        if value is not None and value < 0:
            yield (*block.path, key), f"{value} is less than 0", "use 0 or more"


def replicas_in_order(block: Block) -> Findings:
    """At least minReplicas, which is 1 unless written, is at most maxReplicas, where that is set (11)."""
    low, high = whole_number(block.value.get("minReplicas")), whole_number(block.value.get("maxReplicas"))
    least = 1 if low is None else low
    if high and high > 0 and least > high:
        yield (*block.path, "minReplicas"), f"{least} is more than maxReplicas {high}", "raise maxReplicas"


def logger_mode(block: Block) -> Findings:
    """A logger says what it logs (12)."""
    logger = block.value.get("logger")
    if isinstance(logger, dict) and logger.get("mode") in (None, ""):
        yield (*block.path, "logger", "mode"), "missing", "add mode: all, request or response"


def logger_storage(block: Block) -> Findings:
    """A logger that writes to a storage says where (12)."""
    storage = mapping(block.value.get("logger")).get("storage")
    if isinstance(storage, dict):
        for key in ("path", "parameters", "key"):
            if storage.get(key) is None:
                yield (*block.path, "logger", "storage", key), "missing", f"add {key}"


def predictor_name(block: Block) -> Findings:
    """A predictor's name becomes a part of names of Services."""
    name = block.value.get("name")
    if block.part == "predictor" and isinstance(name, str) and not NAME.match(name):
        yield (
            (*block.path, "name"),
            f"{name!r} is not a name for a predictor",
            "use lower-case letters, digits and dashes",
        )


COMPONENT_RULES: tuple[Rule[Block], ...] = (
    Rule("component-name-inside-model", name_inside_model),
    Rule("component-one-implementation", one_implementation),
    Rule("component-model-replaced", model_replaced, "warning"),
    Rule("component-replicas-not-negative", replicas_not_negative),
    Rule("component-replicas-in-order", replicas_in_order),
    Rule("component-logger-mode", logger_mode),
    Rule("component-logger-storage", logger_storage),
    Rule("component-predictor-name", predictor_name),
)
