"""Quantities: amounts of CPU, memory and devices as Kubernetes writes them, `500m`, `2Gi`, `0.5`.

Source: `quantity.go` of apimachinery 0.37 (format) and `validation.go` of Kubernetes 1.37, ValidateResourceRequirements and
validateResourceQuantityValue (which of them a container may have).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

__all__ = ["check_resources", "mapping_of", "parse_quantity", "quantity_mend"]

_FORMAT = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE])|[eE]([+-]?[0-9]+))?")
_SUFFIXES: Mapping[str, Fraction] = {
    **{name: Fraction(2) ** (10 * power) for power, name in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
    **{name: Fraction(10) ** (3 * power) for power, name in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{name: Fraction(10) ** (-3 * power) for power, name in enumerate(("m", "u", "n"), 1)},
}
_LARGEST_EXPONENT = 30
"""Kubernetes cuts every amount to 2**63 - 1; larger exponents only cost time here."""
_STANDARD = {"cpu", "memory", "ephemeral-storage", "storage"}


def parse_quantity(written: Any) -> Fraction | None:
    """A quantity as an exact number (`500m` is 1/2, `1Gi` is 2**30); None where it is none."""
    match = _FORMAT.fullmatch(str(written))
    if match is None or isinstance(written, bool):
        return None
    number, suffix, exponent = match.groups()
    if exponent is None:
        return Fraction(number) * _SUFFIXES.get(suffix or "", Fraction(1))
    return Fraction(number) * Fraction(10) ** max(-_LARGEST_EXPONENT, min(int(exponent[:9]), _LARGEST_EXPONENT))


def check_resources(
    resources: Mapping[str, Any], *, null_is_zero: bool = False, whole: bool = False
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """What the API server refuses in a container's `resources`.

    Args:
        resources: as written.
        null_is_zero: whether an amount of null is 0, as KServe's webhook writes it, or absent.
        whole: whether nothing is merged into them, so that a limit that is not there is missing.

    Returns:
        For each finding the path below `resources`, what is wrong, and how to mend it.
    """
    amounts: dict[tuple[str, str], Fraction] = {}
    for kind in ("limits", "requests"):
        table = resources.get(kind)
        for name, written in (table if isinstance(table, dict) else {}).items():
            if (written is None and not null_is_zero) or isinstance(written, dict | list | bool):
                continue  # absent, or another shape: judged there
            amount = parse_quantity(0 if written is None else written)
            path = (kind, str(name))
            if amount is None:
                yield path, f"{written!r} is not a quantity", quantity_mend(str(written), str(name))
            elif amount < 0:
                yield path, f"{written!r} is less than 0", "use 0 or more"
            elif _is_whole(str(name)) and amount.denominator != 1:
                yield path, f"{written!r} of {name}: devices are given whole", "use a whole number"
            else:
                amounts[path] = amount
    for (kind, name), amount in amounts.items():
        limit = amounts.get(("limits", name))
        if kind != "requests":
            continue
        if limit is None:
            if (
                whole
                and (_is_whole(name) or name.startswith("hugepages-"))
                and name not in mapping_of(resources, "limits")
            ):
                yield (kind, name), f"{name} has no limit: devices are not overcommitted", "write the same under limits"
            continue
        if amount > limit:
            asked, most = resources["requests"][name], resources["limits"][name]
            yield (
                (kind, name),
                f"{asked!r} is more than the limit {most!r}: the API server refuses the pods",
                "raise the limit, or lower the request",
            )
        elif amount < limit and _is_whole(name):
            yield (kind, name), f"{name} is not overcommitted: request and limit differ", "make them equal"


def mapping_of(resources: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """`limits` or `requests`, or an empty mapping where it is none."""
    found = resources.get(kind)
    return found if isinstance(found, dict) else {}


def quantity_mend(written: str, name: str) -> str:
    """Say how to write a quantity that is none.

    Args:
        written: the text.
        name: of the resource or the field, such as `cpu` or `memory`.
    """
    example = "500m or 2" if name == "cpu" else "2Gi or 500M" if name in (*_STANDARD, "modelSize") else "1"
    near = re.fullmatch(r"\s*([0-9.]+)\s*([kKmMgGtTpP])([iI]?)[bB]?\s*", written)
    if near and name != "cpu":
        text = near[1] + near[2].upper().replace("K", "K" if near[3] else "k") + near[3].lower()
        if parse_quantity(text) is not None:
            return f"write {text}"
    return f"write a number with a suffix of Kubernetes, such as {example}"


def _is_whole(name: str) -> bool:
    """Whether a resource is counted in whole devices: an extended one (`nvidia.com/gpu`), no standard one."""
    domain, slash, _ = name.partition("/")
    return bool(slash) and name not in _STANDARD and "kubernetes.io" not in domain
