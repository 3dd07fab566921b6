"""A class of one's own whose method cannot be called as requests call it is refused at start, not at the first request."""

from __future__ import annotations

from typing import Any

import pytest

from serinus.errors import ConfigError
from serinus.hosts.factory import build_model_of
from serinus.model import Model, RequestModel
from serinus.settings import ModelSettings


class Fine(Model):
    def predict(self, inputs, call):
        return inputs


class WithMore(Model):
    def predict(self, rows, how, *, extra=None):
        return rows


class Anything(Model):
    def predict(self, *args, **kwargs):
        return args[0]


class WithoutCall(Model):
    def predict(self, inputs):  # type: ignore[override] # what is refused
        return inputs


class WithTooMuch(Model):
    def predict(self, inputs, parameters, headers):  # type: ignore[override] # likewise
        return inputs


class KeywordOnly(Model):
    def predict(self, inputs, *, call):  # type: ignore[override] # likewise
        return inputs


class WholeRequests(RequestModel):
    async def infer(self, request, headers):  # type: ignore[override] # likewise
        return request


@pytest.mark.parametrize("kind", [Fine, WithMore, Anything])
def test_whatever_takes_inputs_and_call_is_served(kind: Any):
    assert isinstance(build_model_of(kind, ModelSettings(name="m")), kind)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (WithoutCall, "its predict(self, inputs) cannot be called with (inputs, call)"),
        (WithTooMuch, "its predict(self, inputs, parameters, headers) cannot be called with (inputs, call)"),
        (KeywordOnly, "its predict(self, inputs, *, call) cannot be called with (inputs, call)"),
        (WholeRequests, "its infer(self, request, headers) cannot be called with (request)"),
    ],
)
def test_what_cannot_be_called_is_refused_with_what_to_write(kind: Any, says: str):
    with pytest.raises(ConfigError) as refused:
        build_model_of(kind, ModelSettings(name="m"))
    assert says in str(refused.value)
    assert "write def " in str(refused.value)
