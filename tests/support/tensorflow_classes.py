"""A SavedModel's module, of which TensorFlow has to be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


class HalfPlus(tf.Module):
    """TensorFlow Serving's half_plus_two: x / 2 + b, with further signatures."""

    def __init__(self, b: float) -> None:
        super().__init__()
        self.b = tf.Variable(b)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def half(self, x: Any) -> Mapping[str, Any]:
        return {"y": x * 0.5 + self.b}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="tag"),
            tf.TensorSpec([None, 5], tf.float32, name="signal"),
            tf.TensorSpec([None, 2, 2], tf.int32, name="sensor"),
        ]
    )
    def several(self, tag: Any, signal: Any, sensor: Any) -> Mapping[str, Any]:
        return {
            "name": tf.strings.join([tag, tf.constant("!")]),
            "sum": tf.reduce_sum(signal, 1),
            "most": tf.reduce_max(sensor, [1, 2]),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def lengths(self, image_bytes: Any) -> Mapping[str, Any]:
        return {"length": tf.strings.length(image_bytes), "first_bytes": tf.strings.substr(image_bytes, 0, 1)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="x")])
    def scalar(self, x: Any) -> Mapping[str, Any]:
        return {"y": tf.stack([x, -x])}

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def scores(self, x: Any) -> Mapping[str, Any]:
        return {"scores": tf.nn.softmax(x)}
