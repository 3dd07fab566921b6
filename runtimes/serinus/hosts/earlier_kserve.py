"""Classes written for KServe 0.11 to 0.16, under the KServe that is installed.

Theory of operation. Those versions' documents have `super().__init__(name, PredictorConfig(host, protocol, use_ssl))`, or set
`self.predictor_host` and `self.protocol` afterwards, and read `self.protocol` in `preprocess`. KServe 0.21 takes
`return_response_headers` where the configuration stood: the class is made, says that it is ready, and fails at every request. So
`kserve.Model` is given a constructor that takes both forms, and `protocol` and its like as attributes that a class may set; each class that uses
them is named in the log, once. A predictor that a class names itself is the one that is asked, as under those versions.

Source: kserve/kserve, python/kserve/kserve/model.py, tags v0.11.0 to v0.16.0.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from importlib.metadata import version
from typing import Any, Final, cast

import kserve
from kserve.predictor_config import PredictorConfig

from ..settings import PredictorSettings

__all__ = ["accept_earlier_classes", "own_predictor"]

_log = logging.getLogger("serinus.hosts")

_CONFIG: Final = "_serinus_earlier_config"
"""Where an instance keeps the configuration that its constructor was given."""
_ATTRIBUTES: Final = {
    "predictor_host": ("predictor_host", None),
    "protocol": ("predictor_protocol", "v1"),
    "timeout": ("predictor_request_timeout_seconds", 600),
    "use_ssl": ("predictor_use_ssl", False),
    "retries": ("predictor_request_retries", 0),
}
"""Attributes that `kserve.Model` had: the field of `PredictorConfig`, and what it was without one."""
_told: set[type] = set()


def accept_earlier_classes() -> None:
    """Let `kserve.Model` be constructed and read as in earlier versions; done once in a process."""
    original = kserve.Model.__init__
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def construct(self: Any, name: str, *arguments: Any, **named: Any) -> None:
        config = named.pop("predictor_config", None)
        if arguments and (arguments[0] is None or isinstance(arguments[0], PredictorConfig)):
            config, *arguments = arguments  # type: ignore[assignment] # a list in the place of a tuple
        original(self, name, *arguments, **named)
        if config is not None:
            _tell(type(self), "gives its PredictorConfig to kserve.Model")
            vars(self)[_CONFIG] = config

    kserve.Model.__init__ = construct  # type: ignore[method-assign] # what it took before and what it takes now
    for attribute in _ATTRIBUTES:
        if not hasattr(kserve.Model, attribute):
            setattr(kserve.Model, attribute, _Earlier(attribute))


class _Earlier:
    """An attribute of the predictor's; what an instance or a subclass sets hides it."""

    def __init__(self, attribute: str) -> None:
        self._attribute = attribute

    def __get__(self, model: Any, kind: type | None = None) -> Any:
        if model is None:
            return self
        _tell(type(model), f"reads self.{self._attribute}")
        config = vars(model).get(_CONFIG) or model.predictor_config
        field, default = _ATTRIBUTES[self._attribute]
        return default if config is None else getattr(config, field)


def own_predictor(model: Any, given: PredictorSettings | None) -> PredictorSettings | None:
    """Find the predictor that a class names itself.

    Args:
        model: the instance.
        given: the one of the command line.

    Returns:
        `given`, with what the class says otherwise; None where neither names one.
    """
    misplaced = vars(model).get("required_response_headers")
    if isinstance(misplaced, PredictorConfig):  # the instance was made before this module was imported
        _tell(type(model), "gives its PredictorConfig to kserve.Model")
        vars(model)[_CONFIG] = misplaced
        model.required_response_headers = False
    config: PredictorConfig | None = vars(model).get(_CONFIG)
    host = vars(model).get("predictor_host") or (config.predictor_host if config is not None else None)
    if not isinstance(host, str) or not host:
        return given
    own: dict[str, Any] = {"host": host}
    for attribute, setting in (
        ("protocol", "protocol"),
        ("timeout", "timeout_s"),
        ("use_ssl", "use_ssl"),
        ("retries", "retries"),
    ):
        value = vars(model).get(attribute)
        if value is None and config is not None:
            value = getattr(config, _ATTRIBUTES[attribute][0])
        if value is not None:
            own[setting] = getattr(value, "value", value)  # PredictorProtocol's members have the name as value
    if given is not None and given.host == host:
        return dataclasses.replace(given, protocol=cast("Any", own.get("protocol", given.protocol)))
    return PredictorSettings(**own)


def _tell(kind: type, what: str) -> None:
    if kind not in _told:
        _told.add(kind)
        _log.warning(
            "%s %s, as KServe's classes did up to 0.16: taken as it was meant; the installed KServe (%s) has self.predictor_config",
            kind.__qualname__,
            what,
            version("kserve"),
        )
