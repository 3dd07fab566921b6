"""The members: models of installed packages, loaded in this process and fed with what the file cuts from the request."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from serinus.errors import ConfigError, ModelFailed
from serinus.hosts.implementations import resolve
from serinus.loading.model_formats import is_runtime
from serinus.model import Call, Model
from serinus.protocol.datatypes import BYTES, NUMPY_DTYPES
from serinus.settings import ModelSettings

from .schema import EnsembleSpec, InputSpec, MemberSpec

__all__ = ["Member", "load_members"]

_log = logging.getLogger("serinus.ensemble")


class Member:
    """One loaded model, the cut of its inputs, and the roles of its outputs.

    Raises:
        ConfigError: the runtime is no serinus Model, it does not load, or file and model disagree; with the file's line.
    """

    def __init__(
        self,
        spec: MemberSpec,
        inputs: Mapping[str, InputSpec],
        directory: Path,
        threads: int,
        allow_implementation: tuple[str, ...] = (),
    ) -> None:
        self.name = spec.name
        self.model = _make(spec, directory, threads, allow_implementation)
        self.model.load()
        self._could_join = self.model.batchable
        self.features: tuple[str, ...] = ()
        """Feature names in the order of the member's columns; empty: not known."""
        declared = [tensor.name for tensor in self.model.inputs]
        self._cuts: list[tuple[str, str, np.ndarray | None, np.dtype | None]] = []
        for index, cut in enumerate(spec.inputs):
            name = cut.input or (declared[index] if index < len(declared) else cut.tensor)
            if cut.input and declared and cut.input not in declared:
                raise ConfigError(f"input {cut.input!r} is none of the member's: {', '.join(declared)}")
            source = inputs[cut.tensor]
            columns = self._columns(cut.columns, source, single=len(spec.inputs) == 1)
            wanted = self.model.inputs[declared.index(name)].datatype if name in declared else source.datatype
            if (wanted == BYTES) != (source.datatype == BYTES):
                raise ConfigError(f"input {name!r} takes {wanted}, {cut.tensor!r} is {source.datatype}")
            cast = NUMPY_DTYPES[wanted] if wanted != source.datatype else None
            self._cuts.append((name, cut.tensor, columns, cast))
        self._outputs = self._roles(spec)
        self._plain = tuple(self._outputs) == ("score",) and not spec.outputs
        self._calls: dict[tuple[str, ...], Call] = {}

    def _columns(self, columns: tuple[str | int, ...], source: InputSpec, *, single: bool) -> np.ndarray | None:
        """Find the indices to cut, and check the names against the model's own: what it was trained on is the truth."""
        own = tuple(self.model.details.get("feature_names", ())) if single else ()
        names = source.columns
        indices: list[int] = []
        if columns:
            if not names and own and not all(isinstance(column, int) for column in columns):
                raise ConfigError(
                    f"columns are named, and input {source.name!r} names none; give its 'columns', or indices here"
                )
            indices = [names.index(column) if isinstance(column, str) else column for column in columns]
            picked = tuple(names[index] for index in indices) if names else ()
        else:
            picked = names
        if own and picked and picked != own:
            index = next(
                (i for i, pair in enumerate(zip(own, picked, strict=False)) if len(set(pair)) > 1),
                min(len(own), len(picked)),
            )
            ours = own[index] if index < len(own) else "nothing"
            theirs = picked[index] if index < len(picked) else "nothing"
            raise ConfigError(
                f"column {index} of {source.name!r} is {theirs!r} and the model was trained on {ours!r} there: "
                "training and serving would differ"
            )
        self.features = own or picked
        width = source.shape[1] if len(source.shape) == 2 else 1
        if own and not picked and width not in (-1, len(own)) and not columns:
            raise ConfigError(f"{source.name!r} has {width} columns, the model takes {len(own)}")
        if not indices or indices == list(range(width)):
            return None
        return np.array(indices)

    def _roles(self, spec: MemberSpec) -> dict[str, str]:
        offered = [tensor.name for tensor in self.model.outputs]
        if not spec.outputs:
            if not offered:
                raise ConfigError("the member does not say its outputs; name them: outputs: {score: NAME}")
            roles = {"score": offered[0]}
            if "contributions" in offered:
                roles["contributions"] = "contributions"
            return roles
        for role, output in spec.outputs.items():
            if offered and output not in offered:
                raise ConfigError(f"output {output!r} of role {role!r} is none of the member's: {', '.join(offered)}")
        roles = dict(spec.outputs)
        if "contributions" in offered:
            roles.setdefault("contributions", "contributions")
        return roles

    @property
    def is_kept(self) -> bool:
        """What is found out about it may be kept: its author vouches for it, or it says what its answers come from."""
        return self.model.batching == "declared" or self.model.provenance is not None

    def join_rows(self, joined: bool) -> None:
        """Tell a model that has to earn it whether its rows are independent."""
        if self.model.batching == "earned":
            self.model.join_rows(joined and self._could_join)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that this member can fill."""
        return tuple(self._outputs)

    def output_shape(self, role: str) -> tuple[int, ...] | None:
        """Shape of a role's output, as the member declares it; None: it does not."""
        name = self._outputs[role]
        return next((tensor.shape for tensor in self.model.outputs if tensor.name == name), None)

    def predict(self, inputs: Mapping[str, np.ndarray], roles: tuple[str, ...], rows: int) -> dict[str, np.ndarray]:
        """Predict the rows and name the outputs by role.

        Raises:
            InvalidInput: what the member refuses.
            ModelFailed: it answered other rows than it was given.
        """
        arrays: dict[str, np.ndarray] = {}
        for name, tensor, columns, cast in self._cuts:
            array = inputs[tensor]
            if columns is not None:
                array = array[:, columns]
            arrays[name] = array if cast is None else array.astype(cast)
        call = self._calls.get(roles)
        if call is None:
            first = self.model.outputs[0].name if self.model.outputs else None
            wanted = frozenset(self._outputs[role] for role in roles)
            call = self._calls[roles] = Call() if wanted == {first} else Call(outputs=wanted)
        answer = self.model.predict(arrays, call)
        outputs: dict[str, np.ndarray] = {}
        for role in roles:
            array = answer[self._outputs[role]]
            if array.shape[:1] != (rows,):
                raise ModelFailed(f"member {self.name!r} answered {array.shape[:1]} rows for {rows}")
            outputs[role] = array
        return outputs


def _make(spec: MemberSpec, directory: Path, threads: int, allow_implementation: tuple[str, ...]) -> Model:
    """Construct the runtime; only a serinus Model of an installed runtime, or one that the operator allows, will do."""
    settings = ModelSettings(
        name=spec.name,
        model_dir=spec.file,
        threads=spec.threads or threads,
        extra=spec.extra,
        implementation=spec.runtime,
        allow_implementation=allow_implementation,
    )
    if not is_runtime(spec.runtime) and not settings.allows(spec.runtime):
        raise ConfigError(
            f"runtime {spec.runtime!r} is none of the installed ones, and code is not loaded because a model directory says so; "
            f"to trust it, start with --allow_implementation {spec.runtime.replace(':', '.')!r}"
        )
    found = resolve(spec.runtime)
    if found.kind != "serinus" or found.is_instance:
        raise ConfigError(f"runtime {spec.runtime!r} is no class of serinus models (serinus.model.Model)")
    file = Path(inspect.getfile(found.target)).resolve()
    if file.is_relative_to(directory.resolve()):
        raise ConfigError(f"runtime {spec.runtime!r} is code in the model directory; install its package instead")
    return found.target(settings)


def load_members(
    spec: EnsembleSpec,
    path: Path,
    lines: Mapping[tuple[str | int, ...], int],
    threads: int,
    allow_implementation: tuple[str, ...] = (),
) -> Sequence[Member]:
    """Load all members.

    Raises:
        ConfigError: with the problems of all of them, each with the line of its member.
    """
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    members: list[Member] = []
    problems: list[str] = []
    for member in spec.members:
        try:
            members.append(Member(member, inputs, spec.directory, threads, allow_implementation))
            _log.debug("member %s loaded from %s", member.name, member.file)
        except ConfigError as error:
            line = lines.get(member.where, 1)
            problems += [f"{path}:{line}: member {member.name!r}: {problem}" for problem in error.problems]
    if problems:
        for member in members:
            member.model.unload()
        raise ConfigError(problems)
    return members
