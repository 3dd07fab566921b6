"""A container's CPU limit bounds the pools of native libraries, and the log says so."""

from __future__ import annotations

import logging

import pytest

from serinus.cli.serving import native_pools
from serinus.cli.serving.native_pools import POOLS, bound_pools


@pytest.mark.parametrize(
    ("limit", "cores", "threads", "said"),
    [
        (0.5, 64, "1", "0.5 CPUs: 1 thread of a predict"),
        (2.5, 64, "2", "2.5 CPUs: 2 threads of a predict"),
        (4.0, 4, None, "4 CPUs: 4 threads of a predict"),
    ],
)
def test_pools_are_bounded_where_the_limit_is_under_the_cores(limit, cores, threads, said, monkeypatch, caplog):
    monkeypatch.setattr(native_pools, "cpu_limit", lambda: limit)
    environment: dict[str, str] = {}
    with caplog.at_level(logging.INFO, "serinus"):
        bound_pools(environment, cores=cores)
    assert environment == ({} if threads is None else dict.fromkeys(POOLS, threads))
    assert said in caplog.text


def test_what_the_operator_has_set_stays(monkeypatch):
    monkeypatch.setattr(native_pools, "cpu_limit", lambda: 0.5)
    environment = {"OMP_NUM_THREADS": "3"}
    bound_pools(environment, cores=64)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OPENBLAS_NUM_THREADS"] == "1"
