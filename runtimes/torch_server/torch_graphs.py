"""The operations of a TorchScript module or an exported program, as one plain list: names, arguments in the order of the schema.

Both name PyTorch's own operations (ATen); what differs is how they hold constants, defaults and what is inlined. TorchScript is
frozen first, which turns attributes into constants and inlines the calls. A branch on what is known beforehand (`BatchNorm1d` asks how
many dimensions its input has) is taken here.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch

from serinus.engines.not_covered import NotCovered

__all__ = ["Graph", "Operation", "Ref", "read_program", "read_script"]

_FOLDED: Final = {
    "aten::ne": operator.ne,
    "aten::eq": operator.eq,
    "aten::gt": operator.gt,
    "aten::lt": operator.lt,
    "aten::__not__": operator.not_,
}


@dataclass(frozen=True, slots=True)
class Ref:
    """The result of an earlier operation, or an input."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: `name` is the schema's, "aten::linear"; an argument is a `Ref`, a tensor or a plain value."""

    name: str
    arguments: tuple[Any, ...]
    result: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A module from its inputs to what it returns."""

    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    output: Any
    """A `Ref`, or whatever else it returns."""


def read_script(module: torch.jit.ScriptModule) -> Graph:
    """Read a TorchScript module in evaluation mode.

    Raises:
        NotCovered: it cannot be frozen, or branches on its input.
    """
    if hasattr(module, "training"):  # a frozen module has it no more
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, and what many have
                module = torch.jit.freeze(module)
        except RuntimeError as error:
            raise NotCovered(f"a module that cannot be frozen: {str(error).splitlines()[0]}") from None
    graph: Any = module.graph
    reader = _ScriptReader()
    reader.read(graph.nodes())
    inputs = tuple(value.debugName() for value in list(graph.inputs())[1:])  # the first one is the module itself
    outputs = [reader.resolve(value) for value in graph.outputs()]
    return Graph(inputs, tuple(reader.operations), outputs[0] if len(outputs) == 1 else outputs)


class _ScriptReader:
    """Collects the operations of blocks, and what is known without running them."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._known: dict[str, Any] = {}

    def resolve(self, value: Any) -> Any:
        """A constant, or a reference to what is computed."""
        name = value.debugName()
        return self._known.get(name, Ref(name))

    def read(self, nodes: Iterable[Any]) -> None:
        """Read the nodes of a block in order."""
        for node in nodes:
            kind = node.kind()
            arguments = tuple(map(self.resolve, node.inputs()))
            if kind == "prim::If":
                self._branch(node, arguments[0])
                continue
            results = [output.debugName() for output in node.outputs()]
            if len(results) != 1:
                raise NotCovered(f"operation {kind}")
            name = results[0]
            if kind == "prim::Constant":
                self._known[name] = node.output().toIValue()
            elif kind == "prim::ListConstruct":
                self._known[name] = list(arguments)
            elif kind == "aten::dim":
                self._known[name] = 2  # the steps take matrices; anything else fails the comparison with PyTorch
            elif kind in _FOLDED and not any(isinstance(argument, Ref) for argument in arguments):
                self._known[name] = _FOLDED[kind](*arguments)
            else:
                self.operations.append(Operation(kind, arguments, name))

    def _branch(self, node: Any, condition: Any) -> None:
        if not isinstance(condition, bool):
            raise NotCovered("a branch on the input")
        block = list(node.blocks())[0 if condition else 1]
        self.read(block.nodes())
        for output, value in zip(node.outputs(), block.outputs(), strict=True):
            self._known[output.debugName()] = self.resolve(value)


def read_program(program: torch.export.ExportedProgram) -> Graph:
    """Read an exported program.

    Raises:
        NotCovered: it changes its own buffers, or calls what is no operation of PyTorch's.
    """
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise NotCovered("a program that changes what it holds")
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    held = {**program.state_dict, **program.constants}
    known = {name: held[target].detach() for name, target in named.items()}
    operations: list[Operation] = []

    def resolve(argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return known.get(argument.name, Ref(argument.name))
        return list(map(resolve, argument)) if isinstance(argument, (list, tuple)) else argument

    output: Any = None
    for node in program.graph.nodes:
        if node.op == "output":
            (returned,) = node.args
            results = list(map(resolve, returned))
            output = results[0] if len(results) == 1 else results
        elif node.op == "call_function":
            schema = getattr(node.target, "_schema", None)
            if schema is None:
                raise NotCovered(f"operation {getattr(node.target, '__name__', node.target)}")
            arguments = [
                resolve(node.args[at] if at < len(node.args) else node.kwargs.get(one.name, one.default_value))
                for at, one in enumerate(schema.arguments)
            ]
            operations.append(Operation(schema.name, tuple(arguments), node.name))
        elif node.op != "placeholder":
            raise NotCovered(f"a node of kind {node.op}")
    return Graph(tuple(map(str, signature.user_inputs)), tuple(operations), output)
