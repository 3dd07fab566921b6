"""What a SavedModel's graph may do: TensorFlow lets any graph read and write files and call Python, so the graph is looked through before.

Source: tensorflow/SECURITY.md, "TensorFlow models are programs": ReadFile and WriteFile are operators like any other. Refused are
operators that reach files, other machines, or Python functions of the process, or end it, wherever they stand in the graph or its function library:
some functions run while the model is loaded. Two kinds belong into an honest file. Its own checkpoint is saved and restored by operators
that take any file's name; they may stand only where TensorFlow's saver calls them, and what is run at load, restoring, may save nothing and
read no file but the one that the loader names. A vocabulary is read from a text file; its name
must be that of an asset, inside the folder. The operator lets a model do more by `--allow_implementation tensorflow.raw_ops.ReadFile`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tensorflow.python.saved_model import loader_impl

from serinus.errors import ConfigError

__all__ = ["check"]

_REFUSED: Final = re.compile(
    r"(Experimental)?("
    # files
    r"ReadFile|WriteFile|MatchingFiles|(WholeFile|TextLine|FixedLengthRecord|TFRecord|LMDB)Reader(V2)?|RecordInput|DumpTensor"
    r"|(TextLine|TFRecord|FixedLengthRecord|CSV|Sql|LMDB|Load|Save|Snapshot|MatchingFiles|Cache)Dataset(V\d)?|DatasetToTFRecord"
    r"|SnapshotDatasetReader|SnapshotNestedDatasetReader|SnapshotChunkDataset|ListSnapshotChunksDataset|DistributedSave"
    r"|CreateSummary(File|Db)Writer|Debug(Identity|GradientIdentity|NanCount|NumericSummary)(V\d)?|FileSystemSetConfiguration"
    r"|ImmutableConst|CalibrationStatisticsSaver|InitializeTableFromTextFile|GenerateVocabRemapping|LoadAndRemapMatrix|Skipgram"
    r"|InitializeTRTResource"
    # other machines
    r"|Rpc\w*|TryRpc|DataServiceDataset(V\d)?|RegisterDataset(V\d)?|_?(Host)?(Send|Recv)"
    # code
    r"|PyFunc(Stateless)?|EagerPyFunc|TPUPartitionedCall|XlaCustomCall(V2)?"
    # graphs that stand in a text, where nobody looks through them
    r"|DatasetFromGraph|DeserializeIterator|MlirPassthroughOp|_(XlaHostCompute|TPUCompile)Mlir"
    # the end of the process
    r"|Abort|WorkerHeartbeat"
    r")"
)
_PLACES: Final[Mapping[str, tuple[str, re.Pattern[bytes]]]] = {
    "PrintV2": ("output_stream", re.compile(rb"(?!file://).*", re.DOTALL)),
    "FixedUnigramCandidateSampler": ("vocab_file", re.compile(rb"")),
    "DecodeProtoV2": ("descriptor_source", re.compile(rb"local://|bytes://.*|", re.DOTALL)),
    "EncodeProto": ("descriptor_source", re.compile(rb"local://|bytes://.*|", re.DOTALL)),
}
"""Operators that compute unless an attribute names a file, that attribute, and what of it names none."""
_CHECKPOINT: Final = frozenset(
    [
        "Save",
        "SaveSlices",
        "SaveV2",
        "Restore",
        "RestoreSlice",
        "RestoreV2",
        "MergeV2Checkpoints",
        "DTensorRestoreV2",
        "CheckpointExists",
    ]
)
_RESTORING: Final = frozenset(["Restore", "RestoreSlice", "RestoreV2"])
_CALLS: Final = frozenset(["PartitionedCall", "StatefulPartitionedCall"])
_MOST_BYTES: Final = 2**31 - 1
"""Largest message of protocol buffers."""
_VOCABULARY: Final = "InitializeTableFromTextFileV2"


def check(folder: Path, allows: Callable[[str], bool]) -> Any:
    """Look through a SavedModel, and give what was looked through: the file may be another when it is read again.

    Args:
        folder: holds saved_model.pb.
        allows: whether the operator allows an operator of TensorFlow's (`tensorflow.raw_ops.ReadFile`); `ModelSettings.allows`.

    Raises:
        ConfigError: it cannot be read, or can do more than compute.
    """
    for file in folder.glob("saved_model.pb*"):
        size = file.stat().st_size
        if size > _MOST_BYTES:  # TensorFlow ends the process
            raise ConfigError(
                f"{file}: is {size} bytes; a SavedModel's graph has at most {_MOST_BYTES}, its variables lie beside it"
            )
    try:
        saved_model = loader_impl.parse_saved_model(str(folder))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: TensorFlow refuses it: {error}") from error
    for graph in saved_model.meta_graphs:
        looked_at = type(graph)()
        looked_at.CopyFrom(graph)  # asking a protocol buffer's map for what is not in it puts that into it
        _check(folder, looked_at, allows)
    return saved_model


def _check(folder: Path, graph: Any, allows: Callable[[str], bool]) -> None:
    for asset in graph.asset_file_def:
        path = PurePosixPath(asset.filename)
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"{folder}: the asset {asset.filename[:80]!r} leads out of the folder")
    assets = {asset.tensor_info.name.partition(":")[0] for asset in graph.asset_file_def}
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    own = _by_name(graph.graph_def.node)
    _check_restoring(folder, graph.saver_def, own, functions, allows)
    reached, called = _reachable(graph, own, functions)
    for where, nodes in (("", own), *((name, _by_name(function.node_def)) for name, function in functions.items())):
        for node in nodes.values():
            if _REFUSED.fullmatch(node.op):
                _refuse(folder, node, where, allows, "which reaches beyond the model")
            elif node.op in _CHECKPOINT and ((where in called) if where else (node.name in reached)):
                _refuse(folder, node, where, allows, "elsewhere than where the model's own checkpoint is read")
            elif node.op == _VOCABULARY and not _is_asset(node, nodes, assets, where):
                _refuse(folder, node, where, allows, "of a file that is no asset of the model")
            elif node.op in _PLACES and _names_a_file(node, *_PLACES[node.op]):
                _refuse(folder, node, where, allows, f"whose {_PLACES[node.op][0]} is a file")


def _check_restoring(
    folder: Path, saver: Any, own: Mapping[str, Any], functions: Mapping[str, Any], allows: Callable[[str], bool]
) -> None:
    """Look through what the loader runs to restore the variables: there its own checkpoint's operators may stand, on its own file."""
    waiting: list[tuple[str, list[str], frozenset[str]]] = [
        ("", [_source(saver.restore_op_name)], frozenset([_source(saver.filename_tensor_name)]))
    ]
    seen = set()
    while waiting:
        where, pending, files = waiting.pop()
        if (where, files) in seen:
            continue
        seen.add((where, files))
        nodes = _by_name(functions[where].node_def) if where else own
        for node in (nodes[name] for name in (nodes if where else _above(pending, nodes))):
            sources = [_named(text, nodes) for text in node.input if not text.startswith("^")]
            if node.op in _CHECKPOINT - _RESTORING:
                _refuse(folder, node, where, allows, "which is run while the model is loaded")
            elif node.op in _RESTORING and (not sources or sources[0] not in files):
                _refuse(folder, node, where, allows, "of another file than the model's own checkpoint")
            for called in _calls(node, functions):
                arguments = [argument.name for argument in functions[called].signature.input_arg]
                plain = node.op in _CALLS or node.op == called
                given = frozenset(a for a, source in zip(arguments, sources, strict=False) if plain and source in files)
                waiting.append((called, [], given))


def _above(pending: list[str], nodes: Mapping[str, Any]) -> list[str]:
    """Name all nodes that some depend on, and these."""
    found: dict[str, None] = {}
    while pending:
        name = pending.pop()
        if name in nodes and name not in found:
            found[name] = None
            pending += [_source(text) for text in nodes[name].input]
    return list(found)


def _named(text: str, nodes: Mapping[str, Any]) -> str:
    """Name the node of an input, past those that only pass on."""
    name = _source(text)
    passed = set()
    while name in nodes and nodes[name].op == "Identity" and nodes[name].input and name not in passed:
        passed.add(name)
        name = _source(nodes[name].input[0])
    return name


def _refuse(folder: Path, node: Any, where: str, allows: Callable[[str], bool], why: str) -> None:
    name = f"tensorflow.raw_ops.{node.op}"
    if not allows(name):
        place = f" of the function {where}" if where else ""
        raise ConfigError(
            f"{folder}: is not loaded: its node {node.name!r}{place} is {node.op}, {why}; to trust it, start with "
            f"--allow_implementation {name}"
        )


def _names_a_file(node: Any, attribute: str, harmless: re.Pattern[bytes]) -> bool:
    """Whether an attribute does, or is filled in by whoever calls the function that the node stands in."""
    value = node.attr[attribute]
    return bool(value.placeholder) or not harmless.fullmatch(value.s)


def _is_asset(node: Any, nodes: Mapping[str, Any], assets: set[str], where: str) -> bool:
    """Whether the file's name, the second input, comes from an asset: an argument of the function, or the graph's node of an asset."""
    name = _named(node.input[1], nodes) if len(node.input) > 1 else ""
    return name not in nodes if where else name in assets


def _by_name(nodes: Iterable[Any]) -> dict[str, Any]:
    return {node.name: node for node in nodes}


def _source(text: str) -> str:
    """Name the node of an input: `^name`, `name:0`, `name:output:0`."""
    return text.lstrip("^").partition(":")[0]


def _reachable(graph: Any, own: Mapping[str, Any], functions: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Find what can run beside the saver: nodes of the graph that signatures lead to, and functions.

    Roots are the outputs of all signatures (initializers among them), and every function that an object has for callers or for its
    resource; those by which objects save and restore themselves are the saver's.
    """
    pending = [
        _source(tensor.name) for signature in graph.signature_def.values() for tensor in signature.outputs.values()
    ]
    for collection in ("saved_model_main_op", "legacy_init_op"):
        pending += [_source(name) for name in graph.collection_def[collection].node_list.value if name]
    reached: set[str] = set()
    waiting: list[str] = []
    while pending:
        name = pending.pop()
        if name in own and name not in reached:
            reached.add(name)
            pending += [_source(text) for text in own[name].input]
            waiting += _calls(own[name], functions)
    objects = graph.object_graph_def
    savers = {
        name
        for node in objects.nodes
        for saveable in node.saveable_objects.values()
        for place in (saveable.save_function, saveable.restore_function)
        if 0 < place < len(objects.nodes)
        for name in objects.nodes[place].function.concrete_functions
    }
    waiting += [name for name in objects.concrete_functions if name not in savers]
    called: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in functions and name not in called:
            called.add(name)
            for node in functions[name].node_def:
                waiting += _calls(node, functions)
    return reached, called


def _calls(node: Any, functions: Mapping[str, Any]) -> Iterator[str]:
    """Name the functions that a node calls."""
    if node.op in functions:
        yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for function in value.list.func:
            yield function.name
