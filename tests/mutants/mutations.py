"""Sampling the mutants of a module; Cosmic Ray's operators, and one of ours that removes a statement."""

from __future__ import annotations

import ast
import difflib
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import parso
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator, operator_names

__all__ = ["Mutation", "RemoveStatement", "mutations_of", "sample"]


class RemoveStatement(Operator):
    """Removes a call, a raise, a deletion or an assignment to an attribute or an item; Cosmic Ray has no such operator."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Yield the statement's position."""
        if node.type == "simple_stmt" and self._acts(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    @staticmethod
    def _acts(statement: Any) -> bool:
        kind = statement.type
        if kind == "expr_stmt":  # a name that is not assigned is noticed by whatever reads it
            return statement.children[0].type in ("atom_expr", "power")
        if kind == "await":
            return True
        return kind in ("raise_stmt", "del_stmt") or (
            kind in ("atom_expr", "power") and getattr(statement.children[-1], "type", "") == "trailer"
        )

    def mutate(self, node: Any, index: int) -> Any:
        """Write `pass` where the statement was."""
        prefix = node.get_first_leaf().prefix
        node.children[0] = parso.parse(prefix + "pass").children[0]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Return what it makes of a statement."""
        return (Example("a.close()\n", "pass\n"), Example("self.a = 1\n", "pass\n"), Example("raise x\n", "pass\n"))


# Identity for equality and back, which the linter holds apart, and operators that take an argument.
_LEFT_OUT = ("VariableReplacer", "VariableInserter")
_SAME = {("Eq", "Is"), ("NotEq", "IsNot"), ("Is", "Eq"), ("IsNot", "NotEq")}


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change of a module's source."""

    operator: str
    occurrence: int
    line: int
    column: int
    source: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"line {self.line} [{self.operator}]\n    - {self.was}\n    + {self.now}"


def _operators() -> Iterator[tuple[str, Operator]]:
    for name in operator_names():
        short = name.partition("/")[2]
        parts = tuple(short.split("_")[1:])
        if short not in _LEFT_OUT and parts not in _SAME:
            yield short, get_operator(name)()
    yield "RemoveStatement", RemoveStatement()


class _Bare(ast.NodeTransformer):
    """Takes away what does not run: annotations (postponed in every module of ours), a value's `frozen` and `slots`, and whether a
    parameter is given by its place or its name (`*` for `/`), which the type checker sees to."""

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        self.generic_visit(node)
        if node.arg in ("frozen", "slots", "kw_only"):
            node.value = ast.Constant(None)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        self.generic_visit(node)
        node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.defaults = [*node.defaults, *(default for default in node.kw_defaults if default is not None)]
        node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return node


def _is_warned_of(source: str) -> bool:
    """Whether the compiler itself warns, as of identity with a literal: no test is needed to notice, and none would be measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        try:
            compile(source, "mutated", "exec", dont_inherit=True)
        except SyntaxError:
            return True
    return False


def _what_runs(source: str) -> str:
    return ast.dump(_Bare().visit(ast.parse(source)))


def _positions(source: str, operator: Operator) -> Iterator[tuple[int, int]]:
    nodes = [get_ast(source)]
    while nodes:
        node = nodes.pop(0)
        for (line, column), _ in operator.mutation_positions(node):
            yield line, column
        nodes[:0] = getattr(node, "children", [])


def _apply(source: str, name: str, operator: Operator, occurrence: int, at: tuple[int, int]) -> Mutation | None:
    try:
        mutated = MutationVisitor.mutate_code(source, operator, occurrence)
    except AttributeError:  # Cosmic Ray 8.4's ExceptionReplacer takes `module.Error` within a tuple for a plain name
        return None
    try:
        if mutated is None or _what_runs(mutated) == _what_runs(source) or _is_warned_of(mutated):
            return None
    except SyntaxError:
        return None
    changed = [line for line in difflib.ndiff(source.splitlines(), mutated.splitlines()) if line[:2] in ("- ", "+ ")]
    was = " ".join(line[2:].strip() for line in changed if line[0] == "-")
    now = " ".join(line[2:].strip() for line in changed if line[0] == "+")
    return Mutation(name, occurrence, *at, mutated, was, now)


def mutations_of(source: str) -> Iterator[Mutation]:
    """Yield every mutation of a source text that changes what runs."""
    for name, operator in _operators():
        for occurrence, at in enumerate(_positions(source, operator)):
            mutation = _apply(source, name, operator, occurrence, at)
            if mutation is not None:
                yield mutation


def sample(source: str, count: int, seed: int) -> list[Mutation]:
    """Return `count` mutations, or all where there are fewer, in the order of the lines.

    A place is drawn first and then one of its mutations: a comparison has a dozen, the call beside it one.
    """
    places: dict[tuple[int, int, str], list[tuple[str, Operator, int]]] = defaultdict(list)
    for name, operator in _operators():
        for occurrence, (line, column) in enumerate(_positions(source, operator)):
            places[line, column, name.split("_")[0]].append((name, operator, occurrence))
    draw = random.Random(seed)
    order = sorted(places)
    draw.shuffle(order)
    found: dict[tuple[int, str, str], Mutation] = {}
    for place in order:
        if len(found) == count:
            break
        name, operator, occurrence = draw.choice(places[place])
        mutation = _apply(source, name, operator, occurrence, place[:2])
        if mutation is not None:
            found[mutation.line, mutation.was, mutation.now] = mutation
    return sorted(found.values(), key=lambda mutation: (mutation.line, mutation.column))
