"""SavedModels that do more than compute: TensorFlow lets any graph reach files, so the graph is looked through before."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus.errors import ConfigError
from serinus.model import Call
from serinus.settings import ModelSettings

pytestmark = pytest.mark.slow  # TensorFlow alone takes seconds to import

tf = Deferred("tensorflow")
TensorflowModel = Deferred("tensorflow_server", "TensorflowModel")

Step = Callable[[Any], Any]


def _print(x: Any) -> Any:
    tf.print(x, output_stream="file:///tmp/serinus-test-written")
    return x


def _write(x: Any) -> Any:
    tf.io.write_file("/tmp/serinus-test-written", "x")
    return x


def _save(x: Any) -> Any:
    tf.raw_ops.SaveV2(prefix="/tmp/serinus-test-written", tensor_names=["a"], shape_and_slices=[""], tensors=[x])
    return x


def _length(path: Any) -> Any:
    return tf.cast(tf.strings.length(tf.io.read_file(path)), tf.float32)


def _sampled(file: str) -> Any:
    """Words drawn by their number in a file; without one by the numbers that the graph says."""
    options: dict[str, Any] = {"vocab_file": file} if file else {"unigrams": [1.0, 1.0, 1.0]}
    drawn = tf.raw_ops.FixedUnigramCandidateSampler(
        true_classes=tf.constant([[0]], tf.int64), num_true=1, num_sampled=1, unique=False, range_max=3, **options
    )
    return tf.cast(drawn.sampled_candidates[0], tf.float32)


def _decoded(source: str) -> Any:
    sizes = tf.raw_ops.DecodeProtoV2(
        bytes=tf.constant([b""]), message_type="a.B", field_names=[], output_types=[], descriptor_source=source
    ).sizes
    return tf.cast(tf.size(sizes), tf.float32)


def _of_text(graph: bytes) -> Any:
    made = tf.raw_ops.DatasetFromGraph(graph_def=tf.constant(graph))
    (found,) = tf.raw_ops.DatasetToSingleElement(dataset=made, output_types=[tf.float32], output_shapes=[[]])
    return found


def _ends(x: Any) -> Any:
    with tf.control_dependencies([tf.raw_ops.Abort(error_msg="", exit_without_error=False)]):
        return tf.identity(x)


STEPS: dict[str, tuple[Step, str]] = {
    "read": (lambda x: x * _length("/etc/passwd"), "ReadFile"),
    "read below": (lambda x: tf.map_fn(lambda row: row * _length("/etc/passwd"), x), "ReadFile"),
    "write": (_write, "WriteFile"),
    "list": (lambda x: x * tf.cast(tf.size(tf.io.matching_files("/etc/*")), tf.float32), "MatchingFiles"),
    "python": (lambda x: tf.numpy_function(lambda array: array, [x], tf.float32), "PyFunc"),
    "eager python": (lambda x: tf.py_function(lambda array: array, [x], tf.float32), "EagerPyFunc"),
    "print": (_print, "PrintV2"),
    "save": (_save, "SaveV2"),
    "restore": (
        lambda x: (
            tf.raw_ops.RestoreV2(prefix="/x", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32])[0] + x
        ),
        "RestoreV2",
    ),
    "words that two files share": (
        lambda x: (
            x
            * tf.cast(
                tf.raw_ops.GenerateVocabRemapping(
                    new_vocab_file="/etc/passwd", old_vocab_file="/tmp/x", new_vocab_offset=0, num_new_vocab=1
                ).num_present,
                tf.float32,
            )
        ),
        "GenerateVocabRemapping",
    ),
    "another model's weights": (
        lambda x: (
            x
            * tf.raw_ops.LoadAndRemapMatrix(
                ckpt_path="/tmp/x",
                old_tensor_name="w",
                row_remapping=tf.constant([0], tf.int64),
                col_remapping=tf.constant([], tf.int64),
                initializing_values=[],
                num_rows=1,
                num_cols=2,
            )
        ),
        "LoadAndRemapMatrix",
    ),
    "a file of a sampler": (lambda x: x * _sampled("/etc/passwd"), "FixedUnigramCandidateSampler"),
    "a file of message types": (lambda x: x * _decoded("/etc/passwd"), "DecodeProtoV2"),
    "a graph in a text": (lambda x: x * _of_text(b"\n\0"), "DatasetFromGraph"),
    "the end of the process": (_ends, "Abort"),
    "lines": (
        lambda x: x * tf.data.TextLineDataset("/etc/passwd").reduce(0.0, lambda count, _: count + 1),
        "TextLineDataset",
    ),
}


def written(folder: Path, step: Step) -> Path:
    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tf.Variable([1.0, 2.0])

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
        def serve(self, x: Any) -> dict[str, Any]:
            return {"y": tf.ensure_shape(step(x) * self.scale, [None, 2])}

    module = Module()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    return folder


def loaded(folder: Path, *allowed: str) -> TensorflowModel:
    model = TensorflowModel(ModelSettings(name="m", model_dir=folder, allow_implementation=allowed))
    model.load()
    return model


@pytest.mark.parametrize("case", STEPS)
def test_a_graph_that_reaches_beyond_the_model_is_refused_unless_the_operator_allows_it(case: str, tmp_path: Path):
    step, operator = STEPS[case]
    written(tmp_path, step)
    with pytest.raises(ConfigError, match=rf"is {operator}, .*--allow_implementation tensorflow\.raw_ops\.{operator}"):
        loaded(tmp_path)
    assert loaded(tmp_path, f"tensorflow.raw_ops.{operator}").inputs


def test_a_graph_that_computes_and_prints_to_the_log_is_loaded_with_its_variables(tmp_path: Path):
    def step(x: Any) -> Any:
        tf.print("rows", tf.shape(x)[0])
        return tf.nn.relu(x)

    model = loaded(written(tmp_path, step))
    answer = model.predict({model.inputs[0].name: np.ones((1, 2), np.float32)}, Call())
    np.testing.assert_array_equal(answer["y"], [[1, 2]])


def test_a_sampler_whose_graph_has_the_numbers_is_loaded(tmp_path: Path):
    assert loaded(written(tmp_path, lambda x: x * _sampled(""))).inputs


def test_a_file_that_a_function_s_caller_names_is_refused(tmp_path: Path):
    from tensorflow.core.protobuf import saved_model_pb2

    folder = written(tmp_path, lambda x: x * _sampled(""))
    document = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    for function in document.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op == "FixedUnigramCandidateSampler":
                node.attr["vocab_file"].placeholder = "file"
    (folder / "saved_model.pb").write_bytes(document.SerializeToString())
    with pytest.raises(ConfigError, match="whose vocab_file is a file"):
        loaded(folder)


LOOKED_AT = {
    "InitializeTableFromTextFileV2",  # of an asset
    "ShardedFilename",  # makes a name, and opens nothing
    "ShardedFilespec",
    "ConfigureTPUEmbeddingHost",  # none of its kind is in a server's TensorFlow
}


def test_every_operator_of_this_tensorflow_that_takes_a_file_is_known():
    from tensorflow.core.framework import op_def_pb2, types_pb2
    from tensorflow.python.client.pywrap_tf_session import TF_GetAllOpList, TF_GetBuffer

    from tensorflow_server import graph

    named = re.compile(
        r"file|path|(^|_)dir(ectory)?$|vocab|url|descriptor|graph_def|mlir_module|ckpt|address", re.IGNORECASE
    )
    takes = {
        operator.name
        for operator in op_def_pb2.OpList.FromString(TF_GetBuffer(TF_GetAllOpList())).op
        if named.search(operator.name)
        or any(named.search(one.name) for one in operator.input_arg if one.type == types_pb2.DT_STRING)
        or any(named.search(one.name) for one in operator.attr if one.type in ("string", "list(string)"))
    }
    assert {"ReadFile", "Skipgram", "DatasetFromGraph"} <= takes
    known = LOOKED_AT | graph._CHECKPOINT | set(graph._PLACES)
    assert sorted(name for name in takes - known if not graph._REFUSED.fullmatch(name)) == []


def vocabulary(folder: Path) -> Path:
    (folder / "words.txt").write_text("a\nb\n")
    places = tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    words = tf.lookup.TextFileInitializer(str(folder / "words.txt"), tf.string, *places)

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = tf.lookup.StaticHashTable(words, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def serve(self, x: Any) -> dict[str, Any]:
            return {"y": self.table.lookup(x)}

    module = Module()
    tf.saved_model.save(module, str(folder / "m"), signatures={"serving_default": module.serve})
    return folder / "m"


def test_a_vocabulary_among_the_assets_is_read(tmp_path: Path):
    model = loaded(vocabulary(tmp_path))
    answer = model.predict({model.inputs[0].name: np.array([b"b", b"z"], object)}, Call())
    assert answer["y"].tolist() == [1, -1]


@pytest.mark.parametrize("name", ["../../../../../../etc/passwd", "/etc/passwd"])
def test_an_asset_outside_the_folder_is_refused(name: str, tmp_path: Path):
    from tensorflow.core.protobuf import saved_model_pb2

    folder = vocabulary(tmp_path)
    document = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    document.meta_graphs[0].asset_file_def[0].filename = name
    (folder / "saved_model.pb").write_bytes(document.SerializeToString())
    with pytest.raises(ConfigError, match="leads out of the folder"):
        loaded(folder)


def test_a_vocabulary_that_is_no_asset_is_refused(tmp_path: Path):
    from tensorflow.core.protobuf import saved_model_pb2

    folder = vocabulary(tmp_path)
    document = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    changed = 0
    for function in document.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op == "InitializeTableFromTextFileV2":
                constant = function.node_def.add(name="secret", op="Const")
                constant.attr["dtype"].type = tf.string.as_datatype_enum
                constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/etc/passwd"))
                node.input[1] = "secret:output:0"
                changed += 1
                break
    assert changed
    (folder / "saved_model.pb").write_bytes(document.SerializeToString())
    with pytest.raises(ConfigError, match="of a file that is no asset of the model"):
        loaded(folder)


@pytest.mark.parametrize("place", ["saved_model.pb", "variables/variables.index", "assets/words.txt"])
def test_a_file_of_a_savedmodel_that_is_a_link_out_of_it_is_refused(place: str, tmp_path: Path):
    folder = vocabulary(tmp_path)
    (folder / place).replace(tmp_path / "elsewhere")
    (folder / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of the model's directory"):
        loaded(folder)


def test_a_saved_model_that_is_none_is_refused_in_words(tmp_path: Path):
    for content in (b"", b"\xff" * 100, b"\x0a" + b"\xff" * 9):
        (tmp_path / "saved_model.pb").write_bytes(content)
        with pytest.raises(ConfigError, match=str(tmp_path)):
            loaded(tmp_path)


def _constant(node: Any) -> None:
    node.op = "Const"
    node.attr["dtype"].type = tf.string.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/tmp/serinus-test-elsewhere"))


def _restores_another_file(graph: Any) -> str:
    _constant(graph.graph_def.node.add(name="elsewhere"))
    (restore,) = [node for node in graph.graph_def.node if node.op == "RestoreV2"]
    restore.input[0] = "elsewhere"
    return "RestoreV2, of another file than the model's own checkpoint"


def _passes_another_file_on(graph: Any) -> str:
    _constant(graph.graph_def.node.add(name="elsewhere"))
    graph.graph_def.node.add(name="passed", op="Identity", input=["elsewhere"]).attr[
        "T"
    ].type = tf.string.as_datatype_enum
    (restore,) = [node for node in graph.graph_def.node if node.op == "RestoreV2"]
    restore.input[0] = "passed"
    return "RestoreV2, of another file than the model's own checkpoint"


def _saves_while_it_restores(graph: Any) -> str:
    (save,) = [node for node in graph.graph_def.node if node.op == "SaveV2"]
    by_name = {node.name: node for node in graph.graph_def.node}
    by_name[graph.saver_def.restore_op_name].input.append(f"^{save.name}")
    return "SaveV2, which is run while the model is loaded"


def _function_restores_another_file(graph: Any) -> str:
    for function in graph.graph_def.library.function:
        for node in function.node_def:
            if node.op == "RestoreV2":
                _constant(function.node_def.add(name="elsewhere"))
                node.input[0] = "elsewhere:output:0"
                return "RestoreV2, of another file than the model's own checkpoint"
    raise AssertionError("no function restores")


def _function_is_called_with_another_file(graph: Any) -> str:
    _constant(graph.graph_def.node.add(name="elsewhere"))
    by_name = {node.name: node for node in graph.graph_def.node}
    called = by_name[graph.saver_def.restore_op_name]
    while called.op != "StatefulPartitionedCall":
        called = by_name[called.input[0].lstrip("^").partition(":")[0]]
    called.input[0] = "elsewhere"
    return "RestoreV2, of another file than the model's own checkpoint"


HOSTILE = {
    "a constant": ("v1", _restores_another_file),
    "a constant passed on": ("v1", _passes_another_file_on),
    "a save": ("v1", _saves_while_it_restores),
    "a constant in a function": ("tf2", _function_restores_another_file),
    "a function's argument": ("tf2", _function_is_called_with_another_file),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_run_to_restore_the_variables_touches_no_other_file(case: str, tmp_path: Path):
    from tensorflow.core.protobuf import saved_model_pb2

    import tensorflow_graphs

    kind, change = HOSTILE[case]
    write = tensorflow_graphs.write_half_plus if kind == "v1" else tensorflow_graphs.write_half_plus_two_tf2
    folder = write(tmp_path / "m")
    assert loaded(folder).inputs
    document = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    told = change(document.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(document.SerializeToString())
    with pytest.raises(ConfigError, match=told):
        loaded(folder)
