"""What PyTorch's archives may hold: loading them can run code that the file brings, so a file is looked through before.

TorchScript (`check_script`). Its own code computes, and two operators of it reach files: `aten::from_file` maps any file of the machine
into a tensor, `aten::save` writes one; `rpc` calls other machines. A module's `__setstate__` runs while it is loaded.

Exported programs (`check`). PyTorch warns of loading one from elsewhere, with reason (torch 2.13, torch/export/pt2_archive/_package.py and
torch/_export/serde/serialize.py): tensors and sample inputs may be pickles, which are read with `weights_only=False`; compiled
libraries are loaded; a node's target is any attribute that can be reached from `torch`, so `torch.os.system`; expressions of shapes go
through `sympy.sympify`, which evaluates them; guards and names are written into source code that is compiled; a pytree's context names a
module to import. None of these is needed by an honest program. Here the names of the archive's entries, pickles, targets, expressions,
guards, names and pytrees are each held to what `torch.export.save` writes, and all else is refused by name. The entries are read with
the reader that PyTorch reads them with.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from serinus.errors import ConfigError

from .archive_storages import check_sizes

if TYPE_CHECKING:
    from torch.export.pt2_archive._package import PT2ArchiveReader

__all__ = ["check", "check_script"]

_ENTRIES: Final = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
    r"|models/\w+\.json|data/weights/(weight_\d+|\w+_weights_config\.json|\w+\.pt)"
    r"|data/constants/(tensor_\d+|\w+_constants_config\.json|\w+\.pt)|data/sample_inputs/\w+\.pt|extra/[\w./-]+"
)
_NAMESPACES: Final = "aten|prims|quantized|_quantized|quantized_decomposed|onednn|mkldnn|torchvision|torchao"
_HIGHER_ORDER: Final = (
    "cond|while_loop|map_impl|scan|associative_scan|wrap_with_set_grad_enabled|wrap_with_autocast|invoke_subgraph|flex_attention"
    "|out_dtype|hints_wrapper|strict_mode|auto_functionalized|auto_functionalized_v2"
)
_OPERATORS: Final = "add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|inv|invert|lshift|rshift|getitem|is_|is_not"
_TARGET: Final = re.compile(
    rf"torch\.ops\.({_NAMESPACES})\.(?!from_file\.|save\.)[A-Za-z_]\w*\.[A-Za-z]\w*|torch\.ops\.higher_order\.({_HIGHER_ORDER})"
    rf"|_operator\.({_OPERATORS})|math\.[a-z0-9]+|torch\.(sym_\w+|_sym_\w+)"
)
"""`aten::from_file` maps any file of the machine into a tensor."""
_NAME: Final = re.compile(r"[A-Za-z_]\w*")
_PATH: Final = re.compile(r"[\w.@]*")
_TEXT: Final = re.compile(r"[^\\\n\r]*")
_KEY: Final = re.compile(r"[\w .:/-]*")
_REACHING: Final = rb"save|from_file|load_tensor"
_SCRIPT: Final = (
    re.compile(rb"\.[\s\\]*(%b)\b" % _REACHING),
    re.compile(rb"(?m)^[^#\n]*#[^\n]*\n[\s\\]*(%b)\b" % _REACHING),
    re.compile(rb"\b(rpc_(?:a?sync|remote))\b"),
)
"""Operators in TorchScript's code; whatever name they are reached by, they follow a dot, maybe with broken lines or a comment between
(torch/csrc/jit/frontend/lexer.h), or are a text that `getattr` is given."""
_GETATTR: Final = re.compile(
    rb"\bgetattr\((?:[^\"'#\\\n()]|\([^\"'#\\\n()]*\))*, \"(?!(?:%b)\")[^\"\\\n]*\"\)" % _REACHING
)
"""`getattr` as PyTorch writes it (python_print.cpp), for a name that is no identifier: `getattr(self.layers, "0")`. Within are no texts; those that
are nested are replaced from the inside. What is written otherwise may spell a name in ways that no pattern knows: `"sa" "ve"`, octal digits."""
_ANY: Final = "torch.ops.*"
"""What stands for all operators."""
_MOST_NESTED: Final = 64
"""Times that `getattr` stands within itself; each takes one more look at the code. A module within modules without names is a few deep."""
_SYMBOL: Final = re.compile(r"[a-z_]+\d+")
_VALUES: Final = frozenset({"oo", "int_oo", "nan", "zoo", "true", "false"})
_GUARD_CALLS: Final = frozenset({"size", "stride", "storage_offset", "dim", "isnan"})


def check(file: Path, content: bytes, allows: Callable[[str], bool]) -> None:
    """Look through an archive.

    Args:
        file: the archive, for messages.
        content: its bytes, which are what is loaded then: the file may be another by that time.
        allows: whether the operator allows a target (`torch.ops.mylib.op.default`); `ModelSettings.allows`.

    Raises:
        ConfigError: it holds what can run code, or is no archive of `torch.export.save`.
    """
    # Imported here: it brings PyTorch's compiler, 2 s of CPU that a server of TorchScript does without.
    from torch.export.pt2_archive._package import PT2ArchiveReader

    try:
        reader = PT2ArchiveReader(io.BytesIO(content))
        names = list(reader.get_file_names())
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            check_sizes(archive, len(content))
            listed = [info.filename.partition("/")[2] for info in archive.infolist()]
    except Exception as error:  # noqa: BLE001 # PyTorch and zipfile raise half a dozen classes, all meaning that it is no archive
        raise ConfigError(f"{file}: no archive of torch.export.save: {' '.join(str(error).split())[:200]}") from None
    if sorted(names) != sorted(listed) or len(set(names)) != len(names):
        raise ConfigError(f"{file}: two readers find different entries in the archive; save the program again")
    for name in names:
        if not _ENTRIES.fullmatch(name):
            raise _refused(file, f"entry {name[:80]!r}, which is neither a program nor its tensors")
    if "archive_format" not in names:
        raise ConfigError(f"{file}: written by PyTorch 2.7 or before; save the program again with torch.export.save")
    for name in names:
        if name.endswith(".pt"):
            _check_pickle(file, name, reader.read_bytes(name))
        elif name.startswith("models/"):
            _check_program(file, _parsed(file, name, reader), allows)
        elif name.endswith("_config.json"):
            _check_payloads(file, name, reader)


def check_script(file: Path, allows: Callable[[str], bool]) -> None:
    """Look through TorchScript.

    Args:
        file: the archive; what cannot be read is left to `torch.jit.load` to refuse.
        allows: whether the operator allows an operator (`torch.ops.aten.from_file`); `ModelSettings.allows`.

    Raises:
        ConfigError: its code can read or write files, or call other machines.
    """
    try:
        reader = torch._C.PyTorchFileReader(str(file))
        names = [name for name in reader.get_all_records() if name.endswith(".py")]
    except (RuntimeError, UnicodeDecodeError):
        return
    for name in names:
        try:
            code = reader.get_record(name)
        except RuntimeError as error:
            raise ConfigError(f"{file}: the archive is damaged: {name}: {str(error).splitlines()[0][:200]}") from None
        for word in (found[1].decode() for pattern in _SCRIPT for found in pattern.finditer(code)):
            operator = f"torch.ops.{'prim' if word.startswith('rpc_') else 'aten'}.{word}"
            if not allows(operator):
                raise _refused(file, f"{operator} in {name}, which reaches beyond the model", operator)
        if not allows(_ANY):
            _check_getattr(file, name, code)


def _check_getattr(file: Path, name: str, code: bytes) -> None:
    """Refuse an attribute that is asked for by a text, unless PyTorch writes it so: it could be an operator's name."""
    for _ in range(_MOST_NESTED):
        code, replaced = _GETATTR.subn(b"_", code)
        if not replaced:
            break
    if re.search(rb"\bgetattr\b", code):
        raise _refused(file, f"getattr in {name}, not as PyTorch writes it, so that it may name any operator", _ANY)


def _refused(file: Path, what: str, allowance: str = "") -> ConfigError:
    hint = f"; to trust it, start with --allow_implementation {allowance!r}" if allowance else ""
    return ConfigError(f"{file}: is not loaded, since it can do more than compute: it has {what}{hint}")


def _parsed(file: Path, name: str, reader: PT2ArchiveReader) -> Any:
    try:
        return json.loads(reader.read_bytes(name))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: {name} is not JSON: {error}") from None


def _check_pickle(file: Path, name: str, content: bytes) -> None:
    """Read a pickle as PyTorch's own restricted reader does, which takes tensors and plain containers alone."""
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(
            file, f"a pickle in {name} with more than tensors ({str(error).splitlines()[0][:120]})"
        ) from None
    except Exception as error:  # noqa: BLE001 # anything else means that it is damaged
        raise ConfigError(f"{file}: {name} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _check_payloads(file: Path, config: str, reader: PT2ArchiveReader) -> None:
    """Hold the tensors that are pickles, and objects that are no tensors, to the same."""
    document = _parsed(file, config, reader)
    for payload in (
        document["config"].values() if isinstance(document, dict) and isinstance(document.get("config"), dict) else ()
    ):
        name = str(payload.get("path_name")) if isinstance(payload, dict) else ""
        if not re.fullmatch(r"(weight|tensor)_\d+", name):
            raise _refused(file, f"the object {name[:80]!r} in {config}, which is no tensor")
        if payload.get("use_pickle"):
            place = f"{config.rpartition('/')[0]}/{name}"
            _check_pickle(file, place, reader.read_bytes(place))


def _check_program(file: Path, program: Any, allows: Callable[[str], bool]) -> None:
    for key, value, parent in _strings(program):
        if key == "target" and not _TARGET.fullmatch(value) and not (value.startswith("torch.ops.") and allows(value)):
            raise _refused(file, f"the target {value[:120]!r}", value if value.startswith("torch.ops.") else "")
        if key == "as_operator" and not _TARGET.fullmatch(value):
            raise _refused(file, f"the operator {value[:120]!r}")
        if key == "expr_str":
            _check_expression(file, value)
        elif key in ("in_spec", "out_spec"):
            _check_pytree(file, value)
        elif parent == "guards_code":
            _check_guard(file, value)
        elif not _is_name(key, value, parent):
            raise _refused(file, f"the name {value[:80]!r}")
        elif key == "as_string" and not _TEXT.fullmatch(value):
            raise _refused(file, f"the text {value[:80]!r}")
    specs = [spec for key, spec, _ in _strings(_inputs(program)) if key == "as_string"]
    if any("'" in spec for spec in specs):
        raise _refused(file, "an input that is a text with quotes")


def _is_name(key: str, value: str, parent: str) -> bool:
    """Whether a text is no name at all, or one that can stand in source code."""
    if key in ("name", "as_name") or parent == "forward_arg_names":
        return not value or bool(_NAME.fullmatch(value))
    return not (key.endswith("_name") or key == "fqn") or bool(_PATH.fullmatch(value))


def _inputs(program: Any) -> Any:
    try:
        return program["graph_module"]["signature"]["input_specs"]
    except (KeyError, TypeError):
        return None


def _strings(document: Any) -> Iterator[tuple[str, str, str]]:
    """Give every text of a document: its key ("" in a list), itself, and the key of the list or object that it is in."""
    pending: list[tuple[str, Any, str]] = [("", document, "")]
    while pending:
        key, value, parent = pending.pop()
        if isinstance(value, dict):
            pending.extend((str(name), item, key) for name, item in value.items() if name != "metadata")
        elif isinstance(value, list):
            pending.extend(("", item, key) for item in value)
        elif isinstance(value, str):
            yield key, value, parent


def _tree(file: Path, text: str, what: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refused(file, f"{what} {text[:120]!r}") from None


_ARITHMETIC: Final = (
    *(ast.Call, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.boolop),
)
"""Of what both a shape and a guard are written."""


def _check_expression(file: Path, text: str) -> None:
    """Let through sympy's constructors on numbers and symbols, as `sympy.srepr` writes them, and arithmetic."""
    allowed = (*_ARITHMETIC, ast.keyword, ast.Tuple)
    tree = _tree(file, text, "the shape")
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        good = isinstance(node, allowed)
        if isinstance(node, ast.Call):
            good = isinstance(node.func, ast.Name) and bool(re.fullmatch(r"[A-Z]\w+", node.func.id))
        elif isinstance(node, ast.Name) and id(node) not in functions:
            good = node.id in _VALUES or bool(_SYMBOL.fullmatch(node.id))
        elif isinstance(node, ast.Constant):
            good = isinstance(node.value, (bool, int, float)) or (
                isinstance(node.value, str)
                and bool(_NAME.fullmatch(node.value) or re.fullmatch(r"-?[\d.]+(e-?\d+)?", node.value))
            )
        if not good:
            raise _refused(file, f"the shape {text[:120]!r}")


def _check_guard(file: Path, text: str) -> None:
    """Let through comparisons of the sizes of inputs: `L['x'].size()[0] >= 2`."""
    allowed = (*_ARITHMETIC, ast.Subscript, ast.Attribute)
    for node in ast.walk(_tree(file, text, "the guard")):
        good = isinstance(node, allowed)
        if isinstance(node, ast.Name):
            good = node.id in ("L", "math", "min", "max")
        elif isinstance(node, ast.Attribute):
            good = node.attr in _GUARD_CALLS or (
                isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr.isalnum()
            )
        elif isinstance(node, ast.Constant):
            good = isinstance(node.value, (bool, int, float)) or (
                isinstance(node.value, str) and bool(_KEY.fullmatch(node.value))
            )
        if not good:
            raise _refused(file, f"the guard {text[:120]!r}")


def _check_pytree(file: Path, text: str) -> None:
    """Let through containers that import nothing: a defaultdict's context names a module, as does that of an enumeration."""
    pending = [text]
    while pending:
        try:
            document = json.loads(pending.pop())
        except (ValueError, RecursionError):
            raise _refused(file, f"the pytree {text[:120]!r}") from None
        stack = [document]
        while stack:
            value = stack.pop()
            if isinstance(value, dict):
                if {"__enum__", "default_factory_module"} & value.keys() or "defaultdict" in str(value.get("type")):
                    raise _refused(file, "a pytree that names a module to import")
                context = value.get("context")
                if isinstance(context, str) and context[:1] in ("[", "{"):
                    pending.append(context)
                    value = {key: item for key, item in value.items() if key != "context"}
                stack.extend(value.values())
                stack.extend(value)
            elif isinstance(value, list):
                stack.extend(value)
            elif isinstance(value, str) and not _KEY.fullmatch(value.strip('"')):
                raise _refused(file, f"the key {value[:80]!r} in a pytree")
