"""A loaded PyTorch module as verified steps, or the reason why it is PyTorch's alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from serinus.engines.mlp import MOST_WEIGHTS, CompiledMLP
from serinus.engines.mlp_verification import verify
from serinus.engines.not_covered import NotCovered

from .mlp_reader import read_mlp
from .torch_graphs import read_program, read_script

__all__ = ["compile_mlp"]


def compile_mlp(
    module: Any, answer: Callable[[torch.Tensor], torch.Tensor], *, columns: int = 0, declared: str = ""
) -> CompiledMLP:
    """Read a module's graph, compile it, and hold it against PyTorch.

    Args:
        module: TorchScript in evaluation mode, or an exported program; on the CPU.
        answer: PyTorch's answer to a tensor [n, columns], the module's only output.
        columns: of a row, where something else than the graph tells; 0: nothing does.
        declared: NumPy's name of the type that answers must have; empty: any.

    Raises:
        NotCovered: it is another kind of module, too large, or the steps answer otherwise.
    """
    if not isinstance(module, (torch.jit.ScriptModule, torch.export.ExportedProgram)):
        raise NotCovered("a module of Python code")
    held = _count_parameters(module)
    if held > 2 * MOST_WEIGHTS:  # biases and buffers included; reading a graph copies what it holds
        raise NotCovered(f"{held:,} parameters; compiled are at most {MOST_WEIGHTS:,} weights")
    try:
        graph = read_program(module) if isinstance(module, torch.export.ExportedProgram) else read_script(module)
        mlp = read_mlp(graph, columns)
        if declared not in ("", mlp.output_dtype.name):
            raise NotCovered(f"answers in {mlp.output_dtype.name}, where {declared} is declared")
        first = mlp.steps[0].first
        width = mlp.columns or columns or 1 + int(np.max(first if first is not None else -1))

        def ask(rows: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return answer(torch.from_numpy(rows)).numpy()

        return verify(mlp, ask, width)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        # PyTorch refuses rows in many ways, and graphs have arguments that no reader has seen.
        raise NotCovered(f"a graph that does not run as it reads: {' '.join(str(error).split())[:200]}") from None


def _count_parameters(module: torch.jit.ScriptModule | torch.export.ExportedProgram) -> int:
    """Numbers that a module holds; of a frozen one, whose numbers are in its graph, 0."""
    held = module.state_dict if isinstance(module, torch.export.ExportedProgram) else module.state_dict()
    return sum(tensor.numel() for tensor in held.values())
