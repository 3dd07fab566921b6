"""Whether a built image serves: run without rights, waited for, and asked the model's own sample request."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..client.metadata_answers import model_document
from ..errors import ConfigError
from ..protocol.documents.example_values import example_request
from .container_engine import ContainerEngine

__all__ = ["PORT", "FirstAnswer", "ask_image", "request_for"]

PORT: Final = 8080
"""Where an image answers REST."""
_POLL_S: Final = 0.05
_ASK_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """What came of it."""

    ready_s: float
    """From `run` to the first answer that it is ready, seconds."""
    asked: str
    """Which request: a file's name, or what was made up; empty: none could be made."""
    answer: Mapping[str, Any]
    """The document of the answer; empty where nothing was asked."""


def ask_image(
    engine: ContainerEngine, image: str, *, model: str, request: Path | None, timeout_s: float
) -> FirstAnswer:
    """Run an image, read-only, as user 1000 and without capabilities, and ask it once.

    Args:
        engine: that has the image.
        image: its name.
        model: the model's name in URLs.
        request: a V2 or V1 request; None: one row is made up by the model's metadata.
        timeout_s: longest wait for readiness, seconds.

    Raises:
        ConfigError: it ends, is not ready in time, or refuses the request; with the last lines of its log.
    """
    began = time.monotonic()
    with engine.container(image, PORT) as (identity, address):
        while True:
            try:
                _get(address, "/v2/health/ready")
                break
            except (OSError, ValueError):
                waited = time.monotonic() - began
                if not engine.is_running(identity):
                    raise ConfigError(
                        [f"{image}: the container ended before it was ready:", *_tail(engine, identity)]
                    ) from None
                if waited > timeout_s:
                    raise ConfigError(
                        [f"{image}: not ready after {waited:.0f} s (--timeout):", *_tail(engine, identity)]
                    ) from None
                time.sleep(_POLL_S)
        ready_s = time.monotonic() - began
        if request is not None:
            body, asked = request.read_bytes(), request.name
        else:
            made = request_for(_read(address, f"/v2/models/{model}"))
            if made is None:
                return FirstAnswer(ready_s, "", {})
            body, asked = json.dumps(made).encode(), "a request of one row, made up by the model's metadata"
        path = f"/v2/models/{model}/infer" if _is_v2(body, asked) else f"/v1/models/{model}:predict"
        try:
            return FirstAnswer(ready_s, asked, _get(address, path, body))
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")[:2000]
            raise ConfigError(
                [f"{image}: {asked} was answered {error.code}: {said}", *_tail(engine, identity)]
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigError([f"{image}: {asked} was not answered: {error}", *_tail(engine, identity)]) from None


def request_for(metadata: bytes) -> dict[str, Any] | None:
    """Make up a V2 request of one row by a model's metadata.

    Args:
        metadata: the answer of `GET /v2/models/NAME`.

    Returns:
        The example of `/docs`, every value written out; None: the model declares no inputs.

    Raises:
        UpstreamFailed: it is no metadata.
    """
    read = model_document(metadata, "the image")
    return example_request(read, whole=True) if read.inputs else None


def _is_v2(body: bytes, asked: str) -> bool:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise ConfigError(f"{asked}: not JSON: {error}") from None
    if not isinstance(document, dict) or not {"inputs", "instances"} & document.keys():
        raise ConfigError(f"{asked}: neither a V2 request ('inputs') nor a V1 one ('instances')")
    # TensorFlow Serving's columns are V1 too: 'inputs' is an object there, a list of tensors here.
    return isinstance(document.get("inputs"), list)


def _get(address: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    content = _read(address, path, body)
    document = json.loads(content) if content else {}
    return document if isinstance(document, dict) else {"answer": document}


def _read(address: str, path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(f"http://{address}{path}", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=_ASK_TIMEOUT_S) as answer:
        return answer.read()


def _tail(engine: ContainerEngine, identity: str) -> list[str]:
    return [f"  {line}" for line in engine.logs(identity)[-15:]]
