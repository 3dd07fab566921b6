"""How large a number of a request, a setting or a model's file may be: one table.

A number that sizes something (threads, processes, queues, seconds) is refused where it is read if it is beyond its bound, before
anything is allocated for it. What a bound must not do is to stand in the way of somebody who means it: the bounds here are beyond what
a server of ours can make use of, and where an owner could reasonably need more, a setting raises them (`raised_by`).

The byte limits of one request are in `protocol.types.Limits`. LIMITS.md tells all of them; a test holds it to this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .protocol.types import Limits

__all__ = ["BOUNDS", "COLUMNS", "INSTANCES", "Bound", "ModelBounds"]

_WEEK_S: Final = 604_800
"""Longest time that can be waited for: what waits longer waits for ever, which `0` and `None` say already."""
_TIB: Final = 1 << 40

INSTANCES: Final = 64
"""Default of `max_instances`: more predicts at a time than most nodes have cores; each one is a thread, or a process with the model."""


COLUMNS: Final = 1 << 18
"""Most columns of a model that is compiled: its file says the number, and verifying it takes 256 rows of float64, here 0.5 GB."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The range of one number; both ends belong to it."""

    name: str
    """As the setting is called: the flag, the key of settings.json, the field."""
    least: float
    most: float
    raised_by: str = ""
    """The setting that moves `most`; empty: none does."""

    def problem(self, value: float, *, most: float | None = None) -> str | None:
        """Say what is wrong with a value; None where nothing is.

        Args:
            value: a number; NaN is never in range.
            most: in the place of the bound's own, where `raised_by` has moved it.
        """
        limit = self.most if most is None else most
        if self.least <= value <= limit:
            return None
        end = f" ({self.raised_by} raises it)" if self.raised_by and value > limit else ""
        return f"{self.name} is {_shown(value)}; {_shown(self.least)} to {_shown(limit)} was expected{end}"


def _shown(value: float) -> str:
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    text = str(int(value) if whole else value)
    return text if len(text) <= 40 else f"{text[:37]}..."


BOUNDS: Final[Mapping[str, Bound]] = MappingProxyType(
    {
        bound.name: bound
        for bound in (
            # Of a model, from flags, model-settings.json and the `config` of a load request.
            Bound("instances", 1, INSTANCES, "max_instances"),
            Bound("threads", 0, 1024),
            Bound("max_concurrency", 1, 65_536),
            Bound("max_batch_rows", 1, 1 << 20),
            Bound("max_queue_rows", 0, 1 << 24),
            Bound("max_queue_bytes", 0, _TIB),
            Bound("max_delay_s", 0, 60),
            Bound("default_timeout_s", 0, _WEEK_S),
            Bound("hang_timeout_s", 0, _WEEK_S),
            Bound("priority_levels", 1, 256),
            Bound("default_priority", 1, 256),
            Bound("score_column", 0, 65_535),
            # Of the server.
            Bound("workers", 1, 1024),
            Bound("worker_timeout_s", 0, _WEEK_S),
            Bound("memory_limit_bytes", 0, _TIB << 10),
            Bound("gpu_memory_limit_bytes", 0, _TIB << 10),
            Bound("max_instances", 1, 4096),
            Bound("max_classes", 1, 1 << 24),
            Bound("max_body_bytes", 1, _TIB),
            Bound("max_tensor_bytes", 1, _TIB),
            Bound("compress_min_bytes", 0, _TIB),
            Bound("max_tensors", 1, 1 << 20),
            Bound("max_name_bytes", 1, 1 << 20),
            Bound("grpc_max_receive_message_length", 0, 2**31 - 1),
            Bound("grpc_max_send_message_length", 0, 2**31 - 1),
            Bound("timeout_keep_alive_s", 0, _WEEK_S),
            Bound("request_timeout_s", 0, _WEEK_S),
            Bound("send_timeout_s", 0, _WEEK_S),
            Bound("max_unsent_bytes", 0, _TIB),
            Bound("drain_timeout_s", 0, _WEEK_S),
            Bound("drain_delay_s", 0, _WEEK_S),
            Bound("slow_request_s", 0, _WEEK_S),
            Bound("predictor_request_timeout_seconds", 0, _WEEK_S),
            Bound("predictor_request_retries", 0, 100),
        )
    }
)
"""By name. `max_rank` and `max_json_depth` end where NumPy and orjson do; see `serinus.cli.serving.serve`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBounds:
    """The bounds of a model that the server's settings move."""

    instances: int = INSTANCES
    """`max_instances`."""
    tensor_bytes: int = Limits().tensor_bytes
    """`max_tensor_bytes`: also of one row of zeros, which warms the model up."""
    rank: int = Limits().rank
    """`max_rank`."""
