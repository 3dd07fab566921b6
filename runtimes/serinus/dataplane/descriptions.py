"""What the data plane tells of itself and its models, whichever transport asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from .. import __version__
from ..errors import SerinusError
from ..protocol.documents.model_config import ModelConfig
from ..protocol.documents.tensorflow_serving import metadata_document, version_status
from ..protocol.types import ModelMetadata, ServerMetadata
from ..settings import UNVERSIONED
from .registry import Registry
from .servables.servable import StreamKind
from .telemetry.metrics import Metrics

__all__ = ["Descriptions"]


class Descriptions:
    """Answers questions about models; a `Plane` is one.

    Args:
        registry: the models.
        metrics: their statistics.
        extensions: what the server metadata advertises.
    """

    def __init__(self, registry: Registry, metrics: Metrics, extensions: Sequence[str]) -> None:
        self.registry = registry
        self.metrics = metrics
        self._extensions = tuple(extensions)
        self.workers_statistics: Callable[[], Awaitable[Mapping[tuple[str, str], dict[str, Any]]]] | None = None
        """Gives the statistics of all workers by name and version, where there are several."""

    def server_metadata(self) -> ServerMetadata:
        """Describe the server."""
        return ServerMetadata("serinus", __version__, self._extensions)

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Describe a model.

        Raises:
            NotFound: no such model or version.
            NotReady: it is not loaded, so there is nothing to say of it.
        """
        return self.registry.look_up(name, version).metadata(self.registry.versions(name))

    def model_config(self, name: str, version: str = "") -> ModelConfig:
        """Say what Triton's model configuration would of a model.

        Raises:
            NotFound: no such model or version.
            NotReady: it is not loaded.
        """
        servable = self.registry.look_up(name, version)
        batch = servable.model.settings.batch
        rows, delay_s = (batch.max_batch_rows, batch.max_delay_s) if servable.batchable else (0, 0.0)
        metadata = servable.metadata(self.registry.versions(name))
        return ModelConfig(metadata, rows, delay_s, servable.model.decoupled)

    def v1_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """Describe a model as TensorFlow Serving does (GetModelMetadataResponse).

        Raises:
            NotFound: no such model or version.
            NotReady: it is not loaded.
        """
        servable = self.registry.look_up(name, version)
        return metadata_document(servable.metadata(), servable.version)

    def v1_status(self, name: str, version: str = "") -> list[dict[str, Any]]:
        """Tell the states of a model's versions as TensorFlow Serving does (ModelVersionStatus), the newest first.

        Raises:
            NotFound: no such model or version.
        """
        self.registry.current(name, version)
        return [
            version_status(
                entry, failed=entry["state"] == "UNAVAILABLE" and not self.is_unloaded(name, entry.get("version", ""))
            )
            for entry in reversed(self.repository_index())
            if entry["name"] == name and version in ("", entry.get("version", ""))
        ]

    def labelled_version(self, name: str, label: str) -> str:
        """Find the version that a label stands for (TensorFlow Serving's `/v1/models/{m}/labels/{label}`).

        Raises:
            NotFound: no such model or label; says which there are.
        """
        return self.registry.labelled_version(name, label)

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Give a `$model_stat` object (extension_statistics.md) for each version that matches; empty arguments match all.

        Raises:
            NotFound: no such model or version.
        """
        if name:
            self.registry.current(name, version)
        return [
            self.metrics.statistics(known, one).describe()
            for known in ([name] if name else self.registry.names())
            for one in self.registry.known_versions(known)
            if not version or (one or UNVERSIONED) == version
        ]

    async def statistics_of_all(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """As `statistics`, for all workers that share the ports together."""
        own = self.statistics(name, version)
        if self.workers_statistics is None:
            return own
        told = await self.workers_statistics()
        return [told.get((entry["name"], entry["version"]), entry) for entry in own]

    def model_names(self) -> list[str]:
        """Names of the models that are loaded or being loaded."""
        index = self.repository_index()
        return list(dict.fromkeys(entry["name"] for entry in index if entry["state"] != "UNAVAILABLE"))

    def repository_index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """List name, version, state and reason of every model."""
        return self.registry.index(ready_only=ready_only)

    def is_unloaded(self, name: str, version: str = "") -> bool:
        """Whether a model was unloaded on purpose: waiting for it is no help.

        Raises:
            NotFound: no such model or version.
        """
        return self.registry.current(name, version) is None and self.registry.entry(name, version).unloaded

    def check_served(self, name: str, version: str = "") -> None:
        """Find out whether requests for a model could be answered.

        Raises:
            NotFound: no such model or version.
            NotReady: it is not loaded.
        """
        self.registry.find(name, version)

    def stream_kind(self, name: str, version: str = "") -> StreamKind:
        """Say how a model streams; "" also where there is no such model."""
        try:
            return self.registry.find(name, version).stream_kind
        except SerinusError:
            return ""

    def has_generate(self, name: str, version: str = "") -> bool:
        """Whether a model is served under `/generate` too.

        Raises:
            NotFound: no such model or version.
            NotReady: it is not loaded.
        """
        return self.registry.find(name, version).has_generate

    def extra_routes(self) -> list[Any]:
        """HTTP routes of the models' own."""
        return [route for servable in self.registry.servables() for route in servable.model.extra_routes()]
