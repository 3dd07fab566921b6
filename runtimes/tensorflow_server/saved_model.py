"""A SavedModel on disk as TensorFlow Serving runs it: one session, and for each signature a call from its tensors to its tensors.

Theory of operation. A SavedModel of TensorFlow 1 is a graph, and one of TensorFlow 2 has the same graph beside its objects. The session
loader reads both, where `tf.saved_model.load` refuses graphs that it cannot lift into functions (`ParseExample` over a scalar, variables by
reference). A call that is made once, from names of tensors, costs a fifth of a loaded function's, and looks at the shapes of what it is fed as
little as TensorFlow Serving does: the graph's operators decide. Callers check shapes themselves where they want more.

Sources: TensorFlow Serving, bundle_factory_util.cc (tags, session options), predict_util.cc; tensorflow/python/saved_model/loader_impl.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.saved_model import loader_impl

from serinus.errors import ConfigError

__all__ = ["SavedModel", "SignatureCall", "SignatureTensor"]

_SERVING: Final = tf.saved_model.SERVING
_OWN: Final = ("__saved_model_init_op", "__saved_model_train_op")
"""Signatures by which a SavedModel names its own operations (tensorflow/python/saved_model/constants.py)."""


@dataclass(frozen=True, slots=True)
class SignatureTensor:
    """What a tensor of a signature is."""

    dtype: Any
    """tf.DType."""
    shape: tuple[int, ...] | None
    """-1: any size; None: any rank."""


class SignatureCall:
    """One signature.

    Attributes:
        inputs: tensors of the graph by name, in order of the names; None: one that is sparse or composite.
        outputs: likewise.
    """

    def __init__(self, session: Any, definition: Any) -> None:
        self._session = session
        self._feeds = {name: info.name for name, info in sorted(definition.inputs.items())}
        self._fetches = {name: info.name for name, info in sorted(definition.outputs.items())}
        self.inputs = {name: _tensor(session.graph, info) for name, info in sorted(definition.inputs.items())}
        self.outputs = {name: _tensor(session.graph, info) for name, info in sorted(definition.outputs.items())}
        self._call: Any = None

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Run it.

        Args:
            feeds: one array for each input, of its datatype.

        Returns:
            What TensorFlow gives for each output: an array, or bytes where a string has no dimensions.

        Raises:
            tf.errors.OpError: an operator refuses what it is given.
        """
        if self._call is None:
            options = config_pb2.CallableOptions()
            options.feed.extend(self._feeds.values())
            options.fetch.extend(self._fetches.values())
            # Session.make_callable goes through Session.run where there are feeds: that is slow, and refuses what Serving takes.
            self._call = self._session._make_callable_from_options(options)
        return dict(zip(self.outputs, self._call(*(feeds[name] for name in self.inputs)), strict=True))


class SavedModel:
    """A loaded SavedModel.

    Args:
        folder: holds saved_model.pb or saved_model.pbtxt.
        checked: the file as it was read for its check; this is what is loaded.
        threads: for one operator.
        cpu: leave GPUs alone.

    Raises:
        ConfigError: no graph to serve.
        OSError, ValueError, KeyError, tf.errors.OpError: TensorFlow refuses it.
    """

    def __init__(self, folder: Path, checked: Any, *, threads: int, cpu: bool) -> None:
        config = config_pb2.ConfigProto(
            intra_op_parallelism_threads=threads,
            inter_op_parallelism_threads=1,
            allow_soft_placement=True,  # as TensorFlow Serving: a graph made for a GPU runs without one
            device_count={"GPU": 0} if cpu else {},
        )
        # Otherwise TensorFlow takes all of the GPU's memory at once, and no other process or framework gets any.
        config.gpu_options.allow_growth = True
        loader = loader_impl.SavedModelLoader(str(folder))
        loader._saved_model = checked
        tags = _tags(folder, checked)
        graph = tf.Graph()
        self._session = session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            with graph.as_default():
                loaded: Any = loader.load(session, tags)
        except BaseException:
            session.close()
            raise
        self.signatures: dict[str, SignatureCall] = {
            name: SignatureCall(session, definition)
            for name, definition in sorted(loaded.signature_def.items())
            if name not in _OWN
        }

    def close(self) -> None:
        """Let go of the variables."""
        self._session.close()


def _tensor(graph: Any, info: Any) -> SignatureTensor | None:
    """Describe a tensor.

    It is the graph that is asked where the signature says nothing of a shape, or what cannot be: that of TensorFlow Serving's
    half_plus_three calls a vector of strings a float without dimensions.
    """
    if info.WhichOneof("encoding") != "name":
        return None
    tensor = graph.as_graph_element(info.name, allow_operation=False)
    told, known = tf.TensorShape(info.tensor_shape), tensor.shape
    shape = known if told.rank is None or not told.is_compatible_with(known) else told
    sizes = None if shape.rank is None else tuple(-1 if size is None else size for size in shape.as_list())
    return SignatureTensor(tensor.dtype.base_dtype, sizes)


def _tags(folder: Path, saved_model: Any) -> list[str]:
    """Choose the graph: the one for serving, or the only one there is."""
    graphs = [list(graph.meta_info_def.tags) for graph in saved_model.meta_graphs]
    if [_SERVING] in graphs:
        return [_SERVING]
    if len(graphs) == 1:
        return graphs[0]
    told = "; ".join(", ".join(tags) or "no tag" for tags in graphs) or "none"
    raise ConfigError(f"{folder}: no graph has the tag {_SERVING!r} alone; its graphs' tags are: {told}")
