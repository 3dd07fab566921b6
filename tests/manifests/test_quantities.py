"""Quantities: read as Kubernetes reads them, and refused where the API server refuses them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from serinus.manifests.quantities import check_resources, parse_quantity


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        (0, 0), (1, 1), (0.5, Fraction(1, 2)), ("2", 2), ("+2", 2), ("-1", -1), ("1.", 1), (".5", Fraction(1, 2)),
        ("500m", Fraction(1, 2)), ("100u", Fraction(1, 10_000)), ("5n", Fraction(1, 200_000_000)),
        ("3k", 3000), ("3M", 3 * 10**6), ("3G", 3 * 10**9), ("3T", 3 * 10**12), ("3P", 3 * 10**15), ("3E", 3 * 10**18),
        ("1Ki", 2**10), ("1.5Mi", 3 * 2**19), ("1Gi", 2**30), ("1Ti", 2**40), ("1Pi", 2**50), ("1Ei", 2**60),
        ("1e3", 1000), ("1E3", 1000), ("1e-3", Fraction(1, 1000)), ("12E+2", 1200), ("1e999999999", 10**30),
    ],
)  # fmt: skip
def test_a_quantity_is_an_exact_number(written, amount):
    assert parse_quantity(written) == amount


@pytest.mark.parametrize(
    "written",
    ["", " ", "1 Gi", " 1", "1Gi ", "2GB", "2gi", "2g", "1K", "1ki", "1mi", "x", "Gi", ".", "-", "1..2", "1e", "1e1.5", "1e3Ki", "1_000",
     "one", "0x10", "nan", "inf", "1٣", True, None],
)  # fmt: skip
def test_what_kubernetes_does_not_parse_is_no_quantity(written):
    assert parse_quantity(written) is None


RESOURCES = {
    "nothing": ({}, []),
    "no tables": ({"limits": None, "requests": [1]}, []),
    "another shape is judged elsewhere": ({"limits": {"cpu": None, "memory": {}, "a/b": True}}, []),
    "usual": ({"limits": {"cpu": "1", "memory": "2Gi"}, "requests": {"cpu": "500m", "memory": "2048Mi"}}, []),
    "number": ({"limits": {"cpu": 0.1}}, []),
    "not a quantity": ({"limits": {"memory": "2GB"}}, [("limits", "memory", "write 2G")]),
    "lower case": ({"requests": {"memory": "512mb"}}, [("requests", "memory", "write 512M")]),
    "kibi": ({"requests": {"memory": "4KiB"}}, [("requests", "memory", "write 4Ki")]),
    "kilo": ({"requests": {"memory": "4K"}}, [("requests", "memory", "write 4k")]),
    "words of cpu": ({"limits": {"cpu": "one"}}, [("limits", "cpu", "such as 500m or 2")]),
    "words of memory": ({"limits": {"memory": "much"}}, [("limits", "memory", "such as 2Gi or 500M")]),
    "words of a device": ({"limits": {"nvidia.com/gpu": "a"}}, [("limits", "nvidia.com/gpu", "such as 1")]),
    "negative": ({"requests": {"cpu": "-1"}}, [("requests", "cpu", "use 0 or more")]),
    "half a device": ({"limits": {"nvidia.com/gpu": "0.5"}}, [("limits", "nvidia.com/gpu", "whole number")]),
    "whole devices": ({"limits": {"nvidia.com/gpu": 2}, "requests": {"nvidia.com/gpu": "2"}}, []),
    "devices that differ": (
        {"limits": {"nvidia.com/gpu": 2}, "requests": {"nvidia.com/gpu": 1}}, [("requests", "nvidia.com/gpu", "make them equal")],
    ),
    "half of what Kubernetes itself counts": ({"limits": {"kubernetes.io/x": "500m"}}, []),
    "request above limit": ({"limits": {"cpu": 1}, "requests": {"cpu": "1001m"}}, [("requests", "cpu", "raise the limit")]),
    "request at limit": ({"limits": {"memory": "1Gi"}, "requests": {"memory": "1024Mi"}}, []),
    "limit of another": ({"limits": {"memory": "1Mi"}, "requests": {"cpu": 4}}, []),
    "two at once": ({"limits": {"cpu": "x", "memory": "-1"}}, [("limits", "cpu", "suffix"), ("limits", "memory", "0 or more")]),
}  # fmt: skip


@pytest.mark.parametrize(("resources", "expected"), RESOURCES.values(), ids=RESOURCES)
def test_resources_are_refused_as_the_api_server_refuses_them(resources, expected):
    found = list(check_resources(resources))
    assert [path for path, _, _ in found] == [(kind, name) for kind, name, _ in expected]
    for (_, _, mend), (_, _, words) in zip(found, expected, strict=True):
        assert words in mend
