"""SavedModels as TensorFlow 1 wrote them, built with TensorFlow itself: the graphs behind TensorFlow Serving's first examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def write_half_plus(
    folder: Path, *, add: float = 2.0, rank: int | None = 2, as_text: bool = False, told: Any = "the graph's"
) -> Path:
    """Write a SavedModel that answers x / 2 + `add`, with the signatures of TensorFlow Serving's `saved_model_half_plus_two`.

    Args:
        folder: is made.
        add: what is added.
        rank: of x: 2 is [-1, 1] parsed from examples, None is unknown.
        as_text: write saved_model.pbtxt.
        told: shape that the default signature says, where it is not the graph's.
    """
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        a, b, c = (
            v1.Variable(value, name=name, use_resource=False) for value, name in ((0.5, "a"), (add, "b"), (3.0, "c"))
        )
        examples = v1.placeholder(tf.string, name="tf_example", shape=[None])
        parsed = v1.parse_example(
            examples,
            {
                "x": v1.FixedLenFeature([1], tf.float32),
                "x2": v1.FixedLenFeature([1], tf.float32, default_value=[0.0]),
            },
        )
        x, x2 = parsed["x"], tf.identity(parsed["x2"], name="x2")
        if rank is None:
            x = v1.placeholder_with_default(x, shape=None)
        x = tf.identity(x, name="x")
        y, y2, y3 = tf.identity(a * x + b, name="y"), tf.identity(a * x + c), tf.identity(a * x2 + c)
        scores = tf.concat([y3, y3 * 2], axis=1)
        classes = tf.tile(tf.constant([["low", "high"]]), [tf.shape(examples)[0], 1])
        info, define = v1.saved_model.build_tensor_info, v1.saved_model.build_signature_def
        feeds = {"inputs": info(examples)}
        taken = info(x)
        if told != "the graph's":
            taken.tensor_shape.CopyFrom(tf.TensorShape(told).as_proto())
        signatures = {
            "serving_default": define({"x": taken}, {"y": info(y)}, "tensorflow/serving/predict"),
            "regress_x_to_y": define(feeds, {"outputs": info(y)}, "tensorflow/serving/regress"),
            "regress_x_to_y2": define(feeds, {"outputs": info(y2)}, "tensorflow/serving/regress"),
            "regress_x2_to_y3": define({"inputs": info(x2)}, {"outputs": info(y3)}, "tensorflow/serving/regress"),
            "classify_x_to_y": define(feeds, {"scores": info(y)}, "tensorflow/serving/classify"),
            "classify_two": define(
                feeds, {"scores": info(scores), "classes": info(classes)}, "tensorflow/serving/classify"
            ),
            "classify_labels": define(feeds, {"classes": info(classes)}, "tensorflow/serving/classify"),
            "wrong_scores": define(feeds, {"scores": info(tf.reduce_sum(scores, 1))}, "tensorflow/serving/classify"),
            "wrong_values": define(feeds, {"outputs": info(scores)}, "tensorflow/serving/regress"),
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save(as_text=as_text)
    return folder


def write_half_plus_three(folder: Path) -> Path:
    """Write a SavedModel whose placeholder of examples has no dimensions, which the loader of TensorFlow 2 refuses, and whose signature
    calls it a float, as that of TensorFlow Serving's `saved_model_half_plus_three` does."""
    write_half_plus(folder, add=3.0)
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    document = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    (graph,) = document.meta_graphs
    for node in graph.graph_def.node:
        if node.name == "tf_example":
            node.attr["shape"].shape.Clear()
        node.attr.pop("_output_shapes", None)
    graph.graph_def.versions.producer = 21  # graphs before 22 say an unknown shape by an empty one
    for name, signature in graph.signature_def.items():
        for info in (*signature.inputs.values(), *signature.outputs.values()):
            info.tensor_shape.Clear()
            if name.startswith("regress_x_to") and info.name == "tf_example:0":
                info.dtype = tf.float32.as_datatype_enum
    graph.signature_def["tensorflow/serving/regress"].CopyFrom(graph.signature_def["regress_x_to_y"])
    file.write_bytes(document.SerializeToString())
    return folder


class HalfPlusTwo(tf.Module):
    """As TensorFlow 2 writes it: rows of shape [1], one of them declared."""

    def __init__(self) -> None:
        super().__init__()
        self.a = tf.Variable(0.5)
        self.b = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([1], tf.float32, name="x")])
    def serve(self, x: Any) -> dict[str, Any]:
        return {"y": self.a * x + self.b}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs: Any) -> dict[str, Any]:
        parsed = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        return {"outputs": self.a * parsed["x"] + self.b}


def write_half_plus_two_tf2(folder: Path) -> Path:
    """Write `HalfPlusTwo`."""
    module = HalfPlusTwo()
    signatures = {"serving_default": module.serve, "regress_x_to_y": module.regress}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


def write_counter(folder: Path) -> Path:
    """Write a SavedModel with a variable by reference that a signature changes: only the session loader reads it."""
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        counter = v1.Variable(0.0, name="counter", use_resource=False)
        delta = v1.placeholder(tf.float32, [], name="delta")
        added = v1.assign_add(counter, delta)
        info, define = v1.saved_model.build_tensor_info, v1.saved_model.build_signature_def
        signatures = {
            "serving_default": define({"delta": info(delta)}, {"output": info(added)}, "tensorflow/serving/predict")
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()
    return folder
