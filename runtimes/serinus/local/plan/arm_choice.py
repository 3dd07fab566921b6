"""How the gateway chooses an arm for a request: by a user's key, by a tester's word, else at random; and who gets a copy. Pure.

Theory of operation. A weighted route draws a number and takes the arm in whose part of 0..99 it falls. With affinity the number is the hash of the
user's key instead (Envoy: `weighted_clusters.header_name`), made by a few lines of Lua before the route is chosen. Canaries lie at the ends of
0..99 and the stable arm between them: one that grows takes users of stable alone, and who is on it stays. That holds of one canary and of two;
of more, those that lie behind the second one move with it.

The hash is salted with the service and its stable version: the same user is on the same arm for the whole rollout, and the next rollout draws anew, so
that nobody gets every experiment. The access log has the key's hash (64 bits), never the key: distinct users are counted from it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...manifests.inference_service import InferenceService
from ...manifests.problems import Problems

__all__ = [
    "AFFINITY",
    "KEY",
    "PIN_HEADERS",
    "Affinity",
    "Mirror",
    "Pin",
    "affinity_of",
    "by_key",
    "hash_filter",
    "in_order",
    "mirror_policies",
    "pin_match",
]

AFFINITY: Final = "serinus.dev/affinity"
"""Annotation of an InferenceService: `cookie=NAME` or `header=NAME`."""
PIN_HEADERS: Final = ("x-serinus-revision", "knative-serving-tag")
"""A revision's name (as every answer tells it), and Knative's own (networking, `TagHeaderName`): latest, prev, a canary's name."""
_BUCKET: Final = "x-serinus-bucket"
"""The number, on its way from the filter to the route; taken off before the request goes out."""
KEY: Final = "%DYNAMIC_METADATA(serinus:key)%"
"""For the access log: a key's hash; `-`: the request has no key; null: no affinity, or a tester's request."""
_LUA: Final = "envoy.filters.http.lua"
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
"""A field's or a cookie's name (RFC 9110, 5.6.2; RFC 6265, 4.1.1)."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """What a user is known by."""

    kind: str
    """cookie or header."""
    name: str
    salt: str = ""

    def __str__(self) -> str:
        return f"{self.kind}={self.name}"


@dataclass(frozen=True, slots=True)
class Pin:
    """A header that leads to one revision, whatever its share."""

    header: str
    value: str
    revision: str


@dataclass(frozen=True, slots=True)
class Mirror:
    """A revision that gets a copy of some requests; what it answers is dropped."""

    revision: str
    percent: int


def affinity_of(service: InferenceService, problems: Problems) -> Affinity | None:
    """Read the annotation; None: there is none, or it is none of the forms, which is a problem."""
    written = service.annotations.get(AFFINITY, "")
    if not written:
        return None
    kind, _, name = written.partition("=")
    if kind not in {"cookie", "header"} or not _TOKEN.fullmatch(name):
        at = ("metadata", "annotations", AFFINITY)
        mend = "write cookie=NAME or header=NAME, such as header=x-user-id"
        problems.error(service.document, at, f"{written!r} says neither of which cookie nor of which header", mend)
        return None
    return Affinity(kind, name)


def in_order(revisions: Sequence[str], stable: str) -> list[str]:
    """Put revisions as they lie in 0..99: a canary at each end, so that each grows into stable alone."""
    canaries = [revision for revision in revisions if revision != stable]
    middle = [revision for revision in revisions if revision == stable]
    return [*canaries[:1], *middle, *reversed(canaries[1:])]


def pin_match(pin: Pin) -> dict[str, Any]:
    """The condition of a tester's route; names are case-sensitive, as Kubernetes' are."""
    return {"name": pin.header, "string_match": {"exact": pin.value}}


def mirror_policies(mirror: Mirror, kind: str) -> list[dict[str, Any]]:
    """What makes Envoy send a copy and forget the answer (`RouteAction.request_mirror_policies`)."""
    share = {"default_value": {"numerator": mirror.percent, "denominator": "HUNDRED"}}
    # A server that looks at its Host must see what it will see later.
    return [
        {
            "cluster": f"{mirror.revision}/{kind}",
            "runtime_fraction": share,
            "disable_shadow_host_suffix_append": True,
        }
    ]


def by_key(route: dict[str, Any], affinity: Affinity) -> dict[str, Any]:
    """Make a weighted route one that takes its number from the filter."""
    weighted = {**route["route"]["weighted_clusters"], "header_name": _BUCKET}
    context = {"kind": affinity.kind, "name": affinity.name.lower() if affinity.kind == "header" else affinity.name}
    return {
        **route,
        "route": {**route["route"], "weighted_clusters": weighted},
        "typed_per_filter_config": {
            _LUA: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}
        },
        "request_headers_to_remove": [_BUCKET],
        "metadata": {"filter_metadata": {_LUA: {**context, "salt": affinity.salt}}},
    }


def hash_filter() -> dict[str, Any]:
    """The HTTP filter that hashes keys. It is off but for the routes of `by_key`, so that nobody else's requests pay for it."""
    return {
        "name": _LUA,
        "disabled": True,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": _SCRIPT},
        },
    }


_SCRIPT: Final = """
-- MurmurHash3's finaliser over FNV-1a, 32 bits: the products stay below 2^51, where LuaJIT's bit operations are exact.
local function multiply(a, b)
  local low, high = bit.band(a, 0xffff), bit.rshift(a, 16)
  return bit.tobit(low * b + bit.lshift(bit.tobit(high * b), 16))
end

local function hash(text, seed)
  local h = bit.tobit(seed)
  for at = 1, #text do
    h = multiply(bit.bxor(h, string.byte(text, at)), 16777619)
  end
  h = multiply(bit.bxor(h, bit.rshift(h, 16)), 0x85ebca6b)
  h = multiply(bit.bxor(h, bit.rshift(h, 13)), 0xc2b2ae35)
  return bit.bxor(h, bit.rshift(h, 16)) % 4294967296
end

local function cookie(text, name)
  for pair in string.gmatch(text or "", "[^;]+") do
    local key, value = string.match(pair, "^%s*(.-)%s*=%s*(.-)%s*$")
    if key == name then return value end
  end
end

function envoy_on_request(handle)
  local route = handle:metadata()
  local kind, name = route:get("kind"), route:get("name")
  if not kind then return end
  local headers = handle:headers()
  local key = nil
  if kind == "header" then key = headers:get(name) else key = cookie(headers:get("cookie"), name) end
  local seen = handle:streamInfo():dynamicMetadata()
  if not key or key == "" then
    headers:remove("x-serinus-bucket")
    seen:set("serinus", "key", "-")
    return
  end
  local text = route:get("salt") .. "\\0" .. key
  local high = hash(text, 0x811c9dc5)
  headers:replace("x-serinus-bucket", string.format("%.0f", high))
  seen:set("serinus", "key", string.format("%08x%08x", high, hash(text, 0x9e3779b9)))
end
"""
