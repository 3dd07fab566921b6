"""CloudEvents around V1 and V2 requests, in both modes of the HTTP binding.

A request that is an event is answered by an event: *binary mode* has the attributes in `ce-*` headers and the data as the body,
*structured mode* has both in one JSON document of type `application/cloudevents+json`.

Sources: CloudEvents 1.0.2, spec.md ("Context Attributes"), http-protocol-binding.md, 3.1 and 3.2, and json-format.md, 3.1;
KServe's dataplane, whose names and environment variables are kept: the answer's type is `io.kserve.inference.response`, its
source `io.kserve.inference.<model>`, `CE_TYPE` and `CE_SOURCE` replace them, and with `CE_MERGE=true` the request's
attributes are carried over.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Final
from urllib.parse import unquote

import orjson

from ...errors import InvalidInput
from ...protocol.json_census import check_census
from ..http.exchange import Headers

__all__ = ["CloudEvent", "CloudEventSettings", "is_structured", "read_event"]

_REQUIRED: Final = ("id", "source", "type")
_VERSIONS: Final = ("1.0", "0.3")
_RESPONSE_TYPE: Final = "io.kserve.inference.response"
_STRUCTURED: Final = "application/cloudevents+json"


@dataclass(frozen=True, slots=True)
class CloudEventSettings:
    """What answers say of themselves."""

    type: str = _RESPONSE_TYPE
    source: str = ""
    """Empty: `io.kserve.inference.<model>`."""
    merge: bool = False
    """Carry the request's attributes over to the answer."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> CloudEventSettings:
        """Read KServe's variables CE_TYPE, CE_SOURCE and CE_MERGE."""
        return cls(
            environ.get("CE_TYPE") or _RESPONSE_TYPE,
            environ.get("CE_SOURCE", ""),
            environ.get("CE_MERGE", "").lower() == "true",
        )


@dataclass(slots=True)
class CloudEvent:
    """An event that carries a request."""

    data: bytes
    """The request's body."""
    attributes: dict[str, Any]
    binary: bool
    settings: CloudEventSettings = field(default_factory=CloudEventSettings)

    def wrap(self, model: str, body: bytes, content_type: str) -> tuple[str, bytes, list[tuple[bytes, bytes]]]:
        """Make the answering event.

        Args:
            model: the model's name, for the source.
            body: what the answer would be without the event.
            content_type: of `body`.

        Returns:
            Content type, body and further header fields.
        """
        settings = self.settings
        attributes: dict[str, Any] = {"specversion": "1.0"}
        if settings.merge:
            attributes.update(self.attributes)
            attributes.pop("datacontenttype", None)
        attributes["id"] = str(uuid.uuid4())
        attributes["source"] = settings.source or f"io.kserve.inference.{model}"
        attributes["type"] = settings.type
        attributes["time"] = datetime.now(timezone.utc).isoformat()
        if self.binary:
            fields = [(f"ce-{name}".encode("latin-1"), _percent(str(value))) for name, value in attributes.items()]
            return content_type, body, fields
        if content_type == "application/json":
            document = orjson.dumps(attributes)[:-1] + b',"data":' + body + b"}"
        else:
            attributes["datacontenttype"] = content_type
            document = orjson.dumps({**attributes, "data_base64": base64.b64encode(body).decode()})
        return _STRUCTURED, document, []


def is_structured(headers: Headers) -> bool:
    """Tell an event whose document is the body."""
    return headers.content_type.split(b";", 1)[0].strip().lower() == _STRUCTURED.encode()


def read_event(headers: Headers, body: bytes, settings: CloudEventSettings) -> CloudEvent | None:
    """Take a request body out of its event; None: the request is no event.

    Raises:
        InvalidInput: an attribute is missing or wrong, or the data cannot be read.
        TooLarge: its JSON holds more than `json_census` allows.
    """
    if headers.cloud_event:
        attributes: dict[str, Any] = {
            name[3:]: _unpercent(value) for name, value in headers.items() if name.startswith("ce-")
        }
        _check(attributes, "ce-")
        return CloudEvent(body, attributes, True, settings)
    if not is_structured(headers):
        return None
    check_census(body, "the CloudEvent")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the CloudEvent is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInput("the CloudEvent is not a JSON object")
    _check(document, "")
    data = document.pop("data", None)
    encoded = document.pop("data_base64", None)
    if encoded is not None:
        try:
            return CloudEvent(base64.b64decode(encoded, validate=True), document, False, settings)
        except (ValueError, TypeError):
            raise InvalidInput("'data_base64' of the CloudEvent is not base64") from None
    if data is None:
        raise InvalidInput("the CloudEvent has no 'data'")
    return CloudEvent(data.encode() if isinstance(data, str) else orjson.dumps(data), document, False, settings)


def _check(attributes: Mapping[str, Any], prefix: str) -> None:
    version = attributes.get("specversion")
    if version not in _VERSIONS:
        raise InvalidInput(f"CloudEvent attribute '{prefix}specversion' is {version!r}; expected one of 1.0, 0.3")
    for name in _REQUIRED:
        value = attributes.get(name)
        if not isinstance(value, str) or not value:
            raise InvalidInput(f"CloudEvent attribute '{prefix}{name}' is missing; expected a non-empty string")


def _percent(text: str) -> bytes:
    """Percent-encode a header value (http-protocol-binding.md, 3.1.3.2)."""
    return b"".join(
        bytes((byte,)) if 0x21 <= byte <= 0x7E and byte not in b'"%' else b"%%%02X" % byte for byte in text.encode()
    )


def _unpercent(value: str) -> str:
    return unquote(value.strip('"'))
