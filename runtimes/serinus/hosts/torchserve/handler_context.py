"""What a handler is given beside its data: TorchServe's `Context`, under the names that handlers use.

Source: pytorch/serve, ts/context.py. Metrics of a handler's own are taken and counted nowhere.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Context", "HandlerMetrics"]

_log = logging.getLogger("serinus.hosts")


class HandlerMetrics:
    """`context.metrics`: every `add_...` is accepted, and told to the log at DEBUG."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("add_"):
            raise AttributeError(name)

        def add(*arguments: Any, **named: Any) -> None:
            _log.debug("a handler's metric: %s%r %r", name, arguments, named)

        return add


class Context:
    """Of one handler; what belongs to a batch is set before each.

    Args:
        model_name: as it is served.
        folder: where the archive's files are.
        manifest: `MAR-INF/MANIFEST.json`.
        batch_size: most items of a batch.
        config: the archive's model configuration.
    """

    def __init__(
        self, model_name: str, folder: Path, manifest: Mapping[str, Any], batch_size: int, config: Mapping[str, Any]
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.model_yaml_config = dict(config)
        self.metrics = HandlerMetrics()
        self.system_properties: dict[str, Any] = {
            "model_dir": str(folder),
            "gpu_id": None,
            "batch_size": batch_size,
            "server_name": "serinus",
            "server_version": "",
            "limit_max_image_pixels": True,
        }
        self.explain = False
        self.request_ids: dict[int, str] = {}
        self._headers: Sequence[Mapping[str, str]] = ()
        self.statuses: dict[int, int] = {}
        self.response_headers: dict[int, dict[str, str]] = {}

    def begin(self, headers: Sequence[Mapping[str, str]], ids: Sequence[str]) -> None:
        """Take the headers and ids of a batch's items, in order."""
        self._headers = headers
        self.request_ids = dict(enumerate(ids))
        self.statuses, self.response_headers = {}, {}

    def get_request_id(self, idx: int = 0) -> str | None:
        """Id of an item's request."""
        return self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> str | None:
        """A header of an item's request, whatever the case of its name."""
        return self._headers[idx].get(key.lower()) if idx < len(self._headers) else None

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        """All headers of an item's request."""
        return dict(self._headers[idx]) if idx < len(self._headers) else {}

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the content type of an item's answer."""
        self.set_response_header(idx, "content-type", value)

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of an item's answer."""
        self.response_headers.setdefault(idx, {})[key.lower()] = value

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status of an item's answer; its phrase is the status's own."""
        self.statuses[idx] = code

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the status of every item's answer."""
        for idx in range(len(self._headers)):
            self.statuses[idx] = code
