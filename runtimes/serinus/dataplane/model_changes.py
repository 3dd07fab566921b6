"""How the models of a plane change while it serves: loaded, loaded again, unloaded, brought to the set that other processes have.

Theory of operation. A change has two steps. *Staging* does all that can fail or take long, and changes nothing for whoever asks: new versions are
loaded and warm beside the old ones. *Committing* cannot fail. One process does one after the other; several do the first all together, and the
second only where it went well everywhere, so that no two of them answer by different versions for longer than the commits take.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from ..errors import ConfigError, Conflict, InvalidInput, SerinusError, UntrustedModel
from ..protocol.types import NO_PARAMETERS
from ..settings import ModelSettings
from .descriptions import Descriptions
from .model_files import is_unchanged
from .registry import Registry, Staged
from .telemetry.metrics import Metrics

__all__ = ["Loaded", "ModelChanges"]

Loaded = dict[str, dict[str, dict[str, str]]]
"""Name to version to the files that it was loaded from; see `dataplane.model_files`."""


class ModelChanges(Descriptions):
    """The part of a plane that changes its models; see `Descriptions` for the arguments."""

    def __init__(self, registry: Registry, metrics: Metrics, extensions: Sequence[str]) -> None:
        super().__init__(registry, metrics, extensions)
        self.on_load: Callable[[], None] = lambda: None
        """Called when a load request has brought a model, whose own routes may be new."""
        self._required: set[tuple[str, str]] = set()
        """Models asked for at start and not unloaded since."""
        self._missing: set[str] = set()
        """Names that were spared at start, and neither loaded nor unloaded since."""
        self._started = False

    async def load(self, name: str, parameters: Mapping[str, Any] = NO_PARAMETERS) -> None:
        """Load or reload a model; see `Registry.load`.

        Raises:
            InvalidInput: also where the model's settings or files are wrong: who asks for the load put them there.
        """
        await self.commit(await self.stage("load", name, parameters))

    async def unload(self, name: str, parameters: Mapping[str, Any] = NO_PARAMETERS) -> None:
        """Unload a model; readiness no longer waits for it. See `Registry.unload`."""
        await self.commit(await self.stage("unload", name, parameters))

    async def stage(self, action: Literal["load", "unload"], name: str, parameters: Mapping[str, Any]) -> Staged:
        """Do all of a load or unload but its effect; `commit` or `discard` it, and nobody else's of this name comes between.

        Raises:
            InvalidInput: see `load`.
            SerinusError: it cannot be done, and nothing has changed.
        """
        if action == "unload":
            return self.registry.stage_unload(name, parameters)
        try:
            return await self.registry.stage_load(name, parameters)
        except ConfigError as error:
            if isinstance(error, UntrustedModel):
                self.metrics.events.count("serinus_model_signature_refusals_total")
            raise InvalidInput(f"model '{name}' cannot be loaded: {'; '.join(error.problems)}") from error

    async def commit(self, staged: Staged) -> None:
        """Have a staged change happen."""
        name = staged.name
        await self.registry.commit(staged)
        self._missing.discard(name)
        if staged.loaded:
            self.on_load()
        # A version that has left the disk was unloaded: readiness no longer waits for it.
        self._required = {key for key in self._required if key[0] != name or not self.registry.is_unloaded(*key)}

    async def discard(self, staged: Staged) -> None:
        """Give a staged change up."""
        await self.registry.discard(staged)

    def loaded(self) -> Loaded:
        """Give what answers requests: name to version to its files, without models behind others."""
        entries = {name: self.registry.versions(name) or ("",) for name in self.registry.names()}
        return {
            name: {version: dict(self.registry.find(name, version).files) for version in versions}
            for name, versions in entries.items()
            if name in self.registry.defaults
        }

    async def restore(
        self,
        present: Mapping[str, tuple[Mapping[str, Mapping[str, str]], Mapping[str, Any]]],
        models: Sequence[ModelSettings],
        *,
        changed: Collection[str],
        broken: Mapping[str, str] = NO_PARAMETERS,
    ) -> list[str]:
        """Bring the models to a given set, as others like this one have it: what is missing is loaded, what is too many unloaded.

        Args:
            present: name to versions with their files, and to the parameters of its last load.
            models: what a start would load, in all versions; those of a name that is present without any are unloaded ones.
            changed: names that are loaded although this plane may have them: they are another's of the same version.
            broken: name to reason of what a start would list as unavailable.

        Returns:
            What could not be done.
        """
        self._started = True
        for name, reason in broken.items():
            if name not in present:
                self.registry.add_broken(name, reason)
                self._missing.add(name)
        for settings in models:
            versions = present[settings.name][0] if settings.name in present else None
            if versions is not None and settings.version in versions:
                self._required.add((settings.name, settings.version))
            elif versions is not None and not versions:
                self.registry.add_unloaded(settings)
        problems = []
        have = self.loaded()
        for name, (versions, parameters) in present.items():
            if not versions or (name not in changed and set(have.get(name, ())) == set(versions)):
                continue
            known = [settings for settings in models if settings.name == name]
            try:
                staged = await self.registry.stage_load(name, parameters, versions=versions, known=known)
                for settings, _, servable, _ in staged.loaded:
                    if not is_unchanged(versions[settings.version], servable.files):
                        await self.discard(staged)
                        raise Conflict("its files have changed since the others loaded them; load it by request")
                await self.commit(staged)
            except SerinusError as error:
                problems.append(f"model '{name}': {error}")
        for name in self.loaded():
            if name not in present or not present[name][0]:
                await self.unload(name)
        return problems
