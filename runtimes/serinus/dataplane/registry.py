"""How models come and go: loaded, taking another's place, unloaded.

Theory of operation. Who is found under a name is in `model_table`. A model's files are read, and the model is warmed up and measured,
in a thread, so that whatever else is served is served on.

*Loading* builds a whole new `Servable`. Only when it is ready does it enter the table that requests are looked up
in, which is one assignment: a request is answered by the old model or by the new one, and none by neither. The old
one then takes nothing new, ends what it has, and is unloaded. A load that fails changes nothing for a version that
was READY: it serves on, and the error is in its entry's reason and in the caller's hands.

*Several loads at a time* are fine for different names. A second load of a name that is loading is refused (Conflict):
the caller could not know which of the two it got.

*A repository* (`discover`) is asked by name and gives the settings of the versions that are there now. Loading a name
loads all of them and then unloads the versions that are not there any more, as Triton does. A server of named directories has
no index of further names, but reads those directories again likewise; what is no longer found is loaded again from the settings
that it was started with.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..bounds import ModelBounds
from ..errors import ConfigError, Conflict, InvalidInput, ModelFailed, NotFound, SerinusError
from ..model import Model
from ..protocol.json_codec import describe
from ..settings import ModelSettings
from .batching.deadlines import Deadlines
from .model_files import fingerprint
from .model_table import Entry, ModelTable, all_behind
from .overrides import overridden
from .preparation import Preparation
from .servables.servable import Servable
from .telemetry.metrics import Metrics

__all__ = ["Registry", "Staged"]

_log = logging.getLogger("serinus.registry")

_LOOK_S = 0.02
"""Between two looks of a drain."""


@dataclass(slots=True, eq=False)
class Staged:
    """A change of one name that is ready to happen; see `Registry.stage_load`."""

    name: str
    loaded: list[tuple[ModelSettings, ModelSettings, Servable, float]] = field(default_factory=list)
    """Settings as changed by `config`, as they are without, the model that has them, and when its load began."""
    gone: tuple[str, ...] = ()
    """Versions to unload."""
    reason: str = "no longer in the repository"
    """Why those go."""


def _chosen(name: str, found: Sequence[ModelSettings], versions: Collection[str]) -> list[ModelSettings]:
    """Take the wanted versions.

    Raises:
        NotFound: one of them is not there.
    """
    by_version = {settings.version: settings for settings in found}
    missing = [version for version in versions if version not in by_version]
    if missing:
        there = ", ".join(f"'{version}'" for version in by_version) or "none"
        raise NotFound(f"model '{name}': version '{missing[0]}' is not there any more; there are {there}")
    return [by_version[version] for version in versions]


class Registry(ModelTable):
    """The models of one process. Belongs to the event loop on which its coroutines run.

    Args:
        factory: makes a model of its settings; called in a thread.
        discover: gives the settings of a name as it is on the disk now, of all its versions where there are several; None for a
            name that is not there.
        index: names in the model repository, loaded or not; None: there is no repository.
        metrics: where the models' statistics are registered.
        clock: seconds, monotonic; deadlines of requests are on it.
        bounds: of what a model may size.
        unload_wait_s: longest that `unload` waits for requests in flight; they end all the same.
        expose_behind: clients may call the models behind others.
    """

    def __init__(
        self,
        factory: Callable[[ModelSettings], Model],
        *,
        discover: Callable[[str], ModelSettings | Sequence[ModelSettings] | None] | None = None,
        index: Callable[[], Iterable[str]] | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        bounds: ModelBounds = ModelBounds(),  # noqa: B008 # frozen
        unload_wait_s: float = 30.0,
        expose_behind: bool = False,
    ) -> None:
        super().__init__(expose_behind=expose_behind, index=index)
        self.metrics = metrics if metrics is not None else Metrics()
        self.clock = clock
        self._factory = factory
        self._discover = discover
        self._bounds = bounds
        self._unload_wait_s = unload_wait_s
        self._preparation: Preparation | None = None
        self._busy: set[str] = set()
        """Names that load now."""
        self._retiring: set[asyncio.Task[None]] = set()
        self._retired: set[Servable] = set()
        """Replaced or unloaded, with requests still in flight."""
        self._deadlines: Deadlines | None = None
        self.notes_files = False
        """Note what a model's files are when it is loaded, for comparing them with those of other processes."""
        self.metrics.observe_gauges(self._gauges)
        self.metrics.add_source(self._families)

    async def add(self, *versions: ModelSettings) -> None:
        """Load versions of one name, or load them again and swap.

        Raises:
            Conflict: the name is loading already.
            SerinusError: the first that does not load, the others do all the same; what was READY before serves on.
        """
        name = versions[0].name
        if name in self._busy:
            raise Conflict(f"model '{name}' is loading already; wait until it is ready")
        self._busy.add(name)
        problem: SerinusError | None = None
        try:
            for settings in versions:
                try:
                    await self._load(settings)
                except SerinusError as error:
                    problem = problem or error
        finally:
            self._busy.discard(name)
        if problem is not None:
            raise problem

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a name from the repository, or again from its settings (extension_model_repository.md, "Load").

        Raises:
            NotFound: neither the repository nor this process knows the name.
            InvalidInput: a parameter other than `config`, or what that changes; files cannot be sent.
            Conflict: it is loading already.
            SerinusError: it does not load.
        """
        await self.commit(await self.stage_load(name, parameters))

    async def stage_load(
        self,
        name: str,
        parameters: Mapping[str, Any],
        *,
        versions: Collection[str] | None = None,
        known: Sequence[ModelSettings] = (),
    ) -> Staged:
        """Do all of a load but its effect: every version is loaded and warm, and nobody asks it yet. The name is busy until `commit` or `discard`.

        Args:
            name: of the model.
            parameters: see `load`.
            versions: those that are wanted, all of them; None: those that are there.
            known: settings of the name for where nobody can be asked for them.

        Raises:
            SerinusError: as `load`; nothing has changed.
        """
        for parameter in parameters:
            if parameter != "config":
                raise InvalidInput(
                    f"load parameter '{parameter}' is not offered; there is 'config'. Put files into the repository"
                )
        if name in self._busy:
            raise Conflict(f"model '{name}' is loading already; wait until it is ready")
        self._busy.add(name)
        staged = Staged(name)
        try:
            found = await self._find(name, known)
            if versions is not None:
                found = _chosen(name, found, versions)
            self.forget_broken(name)
            config = parameters.get("config")
            changed = [settings if config is None else self._overridden(settings, config) for settings in found]
            for settings, own in zip(changed, found, strict=True):
                started = self.clock()
                servable = await self._prepare(settings)
                staged.loaded.append((settings, own, servable, started))
            if self._discover is not None:
                staged.gone = tuple(set(self._entries.get(name, ())) - {settings.version for settings in found})
        except BaseException as error:
            await self.discard(staged, str(error))
            raise
        return staged

    def stage_unload(self, name: str, parameters: Mapping[str, Any]) -> Staged:
        """Do all of an unload but its effect; see `stage_load`.

        Raises:
            SerinusError: as `unload`; nothing has changed.
        """
        for parameter, value in parameters.items():
            if parameter != "unload_dependents":
                raise InvalidInput(f"unload parameter '{parameter}' is not offered; there is 'unload_dependents'")
            if type(value) is not bool:  # its value changes nothing: no model here depends on another
                raise InvalidInput(f"unload parameter '{parameter}' is {describe(value)}; true or false was expected")
        if name in self._busy:
            raise Conflict(f"model '{name}' is loading; wait until it is ready")
        staged = Staged(name, reason="unloaded")
        if name in self._entries:
            staged.gone = tuple(self._entries[name])
        elif self._index is None or name not in self._index():
            self.entry(name)
        self._busy.add(name)
        return staged

    async def commit(self, staged: Staged) -> None:
        """Have a staged change happen: requests find the new versions and no more those that go, at once."""
        self._busy.discard(staged.name)
        for settings, own, servable, started in staged.loaded:
            self._publish(settings, own, servable, started)
        await asyncio.gather(*(self._unload(staged.name, version, staged.reason) for version in staged.gone))

    async def discard(self, staged: Staged, reason: str = "another worker could not load it") -> None:
        """Give up a staged change; what was there before goes on."""
        self._busy.discard(staged.name)
        for settings, _, servable, _ in staged.loaded:
            entry = self._entries[settings.name][settings.version]
            entry.reason = reason
            if entry.servable is None:
                entry.state = "UNAVAILABLE"
            await self._retire(servable)

    async def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Unload all versions of a name; it takes no request from this moment, and those in flight end.

        Raises:
            NotFound: no such name.
            Conflict: it is loading.
        """
        await self.commit(self.stage_unload(name, parameters))

    async def drain(self) -> None:
        """Wait until nobody waits for an answer of any model."""
        while self.unanswered:  # noqa: ASYNC110 # a predict that hangs after its requests were answered never tells its end
            await asyncio.sleep(_LOOK_S)

    def in_use(self) -> list[Servable]:
        """Give every model that answers requests or still has some, also those that were replaced."""
        return [*self.servables(), *self._retired]

    @property
    def unanswered(self) -> int:
        """Requests that somebody waits for, also of models that were replaced."""
        return sum(servable.unanswered for servable in self.in_use())

    def abandon(self, error: SerinusError) -> None:
        """Answer all requests that wait or run with an error; the executors stop what they can."""
        for servable in self.in_use():
            servable.batcher.fail_all(error)

    async def close(self) -> None:
        """Unload everything at once; requests still in flight are answered NotReady."""
        for servable in self.in_use():
            servable.close()
        for name, versions in self._entries.items():
            await asyncio.gather(*(self._unload(name, version, "the server stops") for version in versions))
        if self._retiring:
            await asyncio.wait(self._retiring)
        if self._deadlines is not None:
            self._deadlines.close()
            self._deadlines = self._preparation = None

    def _overridden(self, settings: ModelSettings, config: Any) -> ModelSettings:
        entry = self._entries.get(settings.name, {}).get(settings.version)
        if entry is None or entry.servable is None:
            return overridden(settings, config, max_instances=self._bounds.instances)
        loaded, batched = entry.servable.model, entry.servable.batchable
        return overridden(settings, config, loaded, batched=batched, max_instances=self._bounds.instances)

    async def _find(self, name: str, known: Sequence[ModelSettings] = ()) -> list[ModelSettings]:
        if self._discover is not None:
            found = await asyncio.get_running_loop().run_in_executor(None, self._discover, name)
            if found is not None:
                return [found] if isinstance(found, ModelSettings) else list(found)
            if self._index is not None:
                raise NotFound(f"model '{name}' is not in the model repository")
        entries = [entry.own for _, entry in sorted(self._entries.get(name, {}).items())]
        return entries or list(known) or [self.entry(name).own]

    async def _load(self, settings: ModelSettings) -> None:
        started = self.clock()
        self._publish(settings, settings, await self._prepare(settings), started)

    async def _prepare(self, settings: ModelSettings) -> Servable:
        """Load a version and warm it up; its entry says LOADING where there is none yet, and the reason where it fails."""
        name, version = settings.name, settings.version
        preparation = self._preparation or self._prepared()
        versions = self._entries.setdefault(name, {})
        entry = versions.setdefault(version, Entry(settings, settings))
        if entry.servable is None:
            entry.state, entry.reason = "LOADING", ""
        try:
            self._check_name(name)
            # Before the load: what changes during it must show.
            loop = asyncio.get_running_loop()
            files = await loop.run_in_executor(None, fingerprint, settings.model_dir) if self.notes_files else {}
            servable = await preparation.prepare(settings)
            servable.files = files
            await self._check_behind(servable)
            await servable.watch()
        except BaseException as error:
            message = str(error) or "it does not load"
            if isinstance(error, NotFound) and entry.servable is None and not entry.loaded:
                del versions[version]  # nobody has it: not even its name is told in the index
                if not versions:
                    del self._entries[name]
            entry.reason = message
            entry.state = "UNAVAILABLE" if entry.servable is None else "READY"
            if isinstance(error, SerinusError | asyncio.CancelledError):
                raise
            _log.exception("model '%s' does not load", name)
            raise ModelFailed(f"model '{name}' does not load: {message}") from error
        return servable

    def _publish(self, settings: ModelSettings, own: ModelSettings, servable: Servable, started: float) -> None:
        """Put a version where requests find it, and end the one that was there."""
        name, version = settings.name, settings.version
        entry = self._entries[name][version]
        servable.statistics.load_s = self.clock() - started
        old = entry.servable
        entry.settings, entry.servable, entry.state, entry.reason = settings, servable, "READY", ""
        entry.own = own
        entry.unloaded = False
        entry.loaded = True
        self.choose_default(name)
        _log.info(
            "model '%s'%s is ready: %s, loaded in %.2f s",
            name,
            f" version {version}" if version else "",
            servable.execution,
            servable.statistics.load_s,
        )
        if old is not None:
            self._retire(old)

    def _check_name(self, name: str) -> None:
        if any(servable.known_as == name for servable in self._behind()):
            raise ConfigError(f"model '{name}': the name is that of a model behind another one here; choose another")

    async def _check_behind(self, servable: Servable) -> None:
        for one in all_behind(servable):
            if one.known_as in self._entries:
                await self._end(servable)
                raise ConfigError(
                    f"model '{servable.name}': the model behind it would be '{one.known_as}', which is the name of another model here; "
                    "rename one of them"
                )

    def _prepared(self) -> Preparation:
        loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(loop, self.clock)
        self._preparation = Preparation(
            factory=self._factory,
            metrics=self.metrics,
            deadlines=self._deadlines,
            loop=loop,
            clock=self.clock,
            bounds=self._bounds,
        )
        return self._preparation

    async def _unload(self, name: str, version: str, reason: str) -> None:
        entry = self._entries[name][version]
        servable, entry.servable = entry.servable, None
        entry.unloaded = True
        self.choose_default(name)
        if servable is None:
            if entry.state != "UNLOADING":
                entry.state, entry.reason = "UNAVAILABLE", reason
            return
        entry.state, entry.reason = "UNLOADING", "requests in flight are being answered"
        task = self._retire(servable)

        def ended(_: asyncio.Task[None]) -> None:
            if entry.servable is None and entry.state == "UNLOADING":
                entry.state, entry.reason = "UNAVAILABLE", reason

        task.add_done_callback(ended)
        await asyncio.wait({task}, timeout=self._unload_wait_s)

    def _retire(self, servable: Servable) -> asyncio.Task[None]:
        """Let a model end its requests, then unload it in a thread."""
        self._retired.add(servable)
        task = asyncio.get_running_loop().create_task(self._end(servable))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def _end(self, servable: Servable) -> None:
        servable.accepting = False
        try:
            await servable.drained()
            servable.close()
            await asyncio.get_running_loop().run_in_executor(None, servable.model.unload)
            for one in servable.behind:
                await self._end(one)
        except Exception:  # noqa: BLE001 # the edge of a task
            _log.exception("model '%s' did not unload cleanly", servable.known_as)
        finally:
            self._retired.discard(servable)
