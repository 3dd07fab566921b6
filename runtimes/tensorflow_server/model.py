"""`TensorflowModel`: one version of a SavedModel; its signatures say its inputs and outputs.

Layout, as TensorFlow Serving's: `<model>/<number>/saved_model.pb`, or a SavedModel folder itself. Which versions are served is
decided where the folder is listed (`serinus.loading.version_policy`: the newest unless a policy says more); this class serves one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from serinus import Call, Model, TensorSpec
from serinus.artifacts import (
    SAVED_MODEL_FILES,
    Extra,
    check_inside,
    is_saved_model,
    override_specs,
    read_labels,
    saved_model_file,
    steady,
)
from serinus.content.pickles import mend_in
from serinus.engines import load_trial
from serinus.errors import ConfigError, InvalidInput
from serinus.model import Provenance
from serinus.protocol.types import Signature
from serinus.settings import ModelSettings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its banner of CPU features is no warning
try:
    import tensorflow as tf
except ImportError as error:  # pragma: no cover # the image has it
    raise ImportError("tensorflow_server needs TensorFlow: pip install 'serinus[tensorflow-server]'") from error

from . import graph
from .saved_model import SavedModel, SignatureCall, SignatureTensor

__all__ = ["DEFAULT_SIGNATURE", "TensorflowModel"]

_log = logging.getLogger("serinus.tensorflow")

DEFAULT_SIGNATURE = "serving_default"
"""tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY."""

_DATATYPES = {
    tf.bool: "BOOL",
    tf.uint8: "UINT8",
    tf.uint16: "UINT16",
    tf.uint32: "UINT32",
    tf.uint64: "UINT64",
    tf.int8: "INT8",
    tf.int16: "INT16",
    tf.int32: "INT32",
    tf.int64: "INT64",
    tf.float16: "FP16",
    tf.bfloat16: "BF16",
    tf.float32: "FP32",
    tf.float64: "FP64",
    tf.string: "BYTES",
}

_BFLOAT16 = tf.bfloat16.as_numpy_dtype


class TensorflowModel(Model):
    """One SavedModel; `extra_settings` are its settings.

    A request may choose another signature by the parameter `signature_name`, as TensorFlow Serving's requests do.
    """

    extra_settings: ClassVar[Mapping[str, str]] = {
        "signature": "the signature that requests get which name none (default serving_default, else the only one)",
        "labels": "file of class names for the classification extension (default labels.txt or labels.json)",
        "version_policy": 'versions to serve, as TensorFlow Serving: {"latest": 1} (default), {"all": {}}, {"specific": [2, 3]}',
        "version_labels": 'versions by label, as TensorFlow Serving: {"stable": 2, "canary": 3}',
        "device": "auto (default: a GPU where TensorFlow finds one), cpu or cuda; one that is asked for and is not there is refused",
    }
    platform: ClassVar[str] = "tensorflow_savedmodel"
    batching = "earned"
    takes_v1_shapes = True

    def load(self) -> None:
        """Load the SavedModel.

        Raises:
            ConfigError: no SavedModel, or no signature to serve.
        """
        extra = Extra(self.settings.extra, known=tuple(self.extra_settings))
        wanted, labels_file = extra.text("signature"), extra.text("labels")
        device = extra.choice("device", ("auto", "cpu", "cuda"))
        extra.close()
        self._placed_on = _placement(device)
        _set_threads(self.settings.native_threads)
        folder = self._folder()
        for path in (*folder.glob("saved_model.pb*"), *folder.glob("variables/*"), *folder.glob("assets/*")):
            check_inside(path, self.settings)
        beside = [path for place in ("variables/*", "assets/*") for path in sorted(folder.glob(place))]
        with steady(
            beside
        ):  # the graph is loaded from what was checked; the numbers and words of another version are not its own
            checked = graph.check(folder, self.settings.allows)
            load_trial.try_apart(self, (saved_model_file(folder), *beside), {"tensorflow": tf.__version__})
            try:
                self._loaded = SavedModel(
                    folder, checked, threads=self.settings.native_threads, cpu=bool(self._placed_on)
                )
            except (
                Exception
            ) as error:  # of a damaged SavedModel a dozen classes are raised, IndexError and TypeError among them
                raise ConfigError(f"{folder}: TensorFlow refuses it: {error}") from error
        self._signatures = self._loaded.signatures
        if not self._signatures:
            raise ConfigError(f"{folder}: has no signatures; export it with one (model.export, or signatures=...)")
        self._default = wanted or DEFAULT_SIGNATURE
        if self._default not in self._signatures:
            if wanted or len(self._signatures) > 1:
                raise ConfigError(f"{folder}: no signature {self._default!r}; there are {', '.join(self._signatures)}")
            self._default = next(iter(self._signatures))
        labels = self._labels(folder, labels_file)
        default = _described(self._signatures[self._default], labels)
        inputs, outputs = default.inputs, default.outputs
        self.inputs = override_specs(inputs, self.settings.inputs, "inputs")
        self.outputs = override_specs(
            outputs, tuple(_labelled(spec, labels) for spec in self.settings.outputs), "outputs"
        )
        self._own_names = {wanted.name: own.name for wanted, own in zip(self.inputs, inputs, strict=True)}
        self._output_names: dict[str, str] = {
            own.name: wanted.name for wanted, own in zip(self.outputs, outputs, strict=True)
        }
        self.signatures = {self._default: Signature(tuple(self.inputs), tuple(self.outputs))}
        for name, signature in self._signatures.items():
            if name != self._default:
                try:
                    self.signatures[name] = _described(signature, labels)
                except ConfigError as error:
                    # What Keras adds for training, and signatures of sparse tensors, must not keep the others from being served.
                    _log.warning("%s: signature %s is not served: %s", folder, name, error)
        self.batchable = all(spec.shape and spec.shape[0] == -1 and not spec.any_rank for spec in (*inputs, *outputs))
        self.default_signature = self._default
        placed = "cpu" if self._placed_on or not tf.config.list_physical_devices("GPU") else "cuda"
        self.computes_in = "FP16" if placed == "cuda" else ""  # TF32, as exact as FP16, is what GPUs compute FP32 in
        facts = {"tensorflow": tf.__version__, "device": placed, "extra": dict(self.settings.extra)}
        self.provenance = Provenance((saved_model_file(folder), folder), facts)
        self.details |= {
            "signatures": ",".join(sorted(self.signatures)),
            "signature": self._default,
            "device": placed,
            "threads": self.settings.native_threads,
        }

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Run a signature.

        Args:
            inputs: one array per input of the signature.
            call: the parameter `signature_name` chooses the signature; `outputs` limits what is returned.

        Raises:
            InvalidInput: an unknown signature, wrong input names, or shapes that the graph refuses.
        """
        name = str(call.parameters.get("signature_name") or self._default)
        signature = self._signatures.get(name)
        if signature is None:
            raise InvalidInput(f"no signature {name!r}; there are {', '.join(sorted(self._signatures))}")
        renamed = name == self._default
        feeds = {}
        for given, array in inputs.items():
            own = self._own_names.get(given, given) if renamed else given
            tensor = signature.inputs.get(own)
            if tensor is None:
                known = ", ".join(signature.inputs)
                raise InvalidInput(f"signature {name!r} has no input {given!r}; its inputs are {known}")
            feeds[own] = array if tensor.dtype != tf.bfloat16 else array.astype(_BFLOAT16)
        missing = [own for own in signature.inputs if own not in feeds]
        if missing:
            raise InvalidInput(f"signature {name!r} needs input {', '.join(missing)}")
        try:
            results = signature(feeds)
        except (tf.errors.InvalidArgumentError, ValueError, TypeError) as error:
            raise InvalidInput(f"the graph refuses the request: {str(error).splitlines()[0]}") from error
        names = self._output_names if renamed else {}
        found = {str(names.get(own, own)): _array(value) for own, value in results.items()}
        return found if call.outputs is None else {name: found[name] for name in call.outputs if name in found}

    def _labels(self, folder: Path, name: str) -> tuple[str, ...]:
        """Read the class names, in the SavedModel's folder or, where that is a version, beside it.

        Raises:
            ConfigError: the named file is in neither, or malformed.
        """
        beside = ModelSettings(name="", model_dir=folder.parent, allow_uri=self.settings.allow_uri)
        if name and folder.name.isdecimal() and (folder.parent / name).is_file():
            return read_labels(beside, name)
        here = read_labels(dataclasses.replace(beside, model_dir=folder), name)
        return here or (read_labels(beside, "") if folder.name.isdecimal() else ())

    def unload(self) -> None:
        """Let go of the graph and its variables."""
        self._signatures = {}
        self._loaded.close()
        del self._loaded

    def _folder(self) -> Path:
        """Find the SavedModel folder: the directory itself, or its newest numbered folder.

        Raises:
            ConfigError: there is none.
        """
        root = self.settings.model_dir
        if root is None:
            raise ConfigError(f"model {self.settings.name!r}: name the SavedModel's directory (--model_dir)")
        if root.name in SAVED_MODEL_FILES:
            return root.parent
        if is_saved_model(root):
            return root
        numbered = (
            [path for path in root.iterdir() if path.name.isdigit() and is_saved_model(path)] if root.is_dir() else []
        )
        if numbered:
            return max(numbered, key=lambda path: int(path.name))
        raise ConfigError(
            f"{root}: no saved_model.pb here and none in a numbered folder (TensorFlow Serving's layout){mend_in(root)}"
        )


def _placement(wanted: str) -> str:
    """Choose the device; gives TensorFlow's name for it, or nothing where TensorFlow's own choice is meant.

    Raises:
        ConfigError: a GPU was asked for and is not there.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if wanted == "cuda" and not gpus:
        raise ConfigError(
            f"extra setting 'device' is 'cuda', but this machine shows 0 GPUs to TensorFlow {tf.__version__}; use the -gpu image "
            "on a node with one, or device cpu"
        )
    for gpu in gpus:
        # Otherwise TensorFlow takes all of the GPU's memory at once, and no other process or framework gets any.
        with contextlib.suppress(RuntimeError):  # another model of this process has begun to use it
            tf.config.experimental.set_memory_growth(gpu, True)
    return "/CPU:0" if wanted == "cpu" and gpus else ""


def _set_threads(threads: int) -> None:
    """Bound TensorFlow's threads; a second model in the same process finds them set."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        return


def _spec(name: str, tensor: SignatureTensor | None) -> TensorSpec:
    if tensor is None:
        raise ConfigError(f"{name!r} is no dense tensor; sparse and composite ones have no place in the protocol")
    datatype = _DATATYPES.get(tensor.dtype)
    if datatype is None:
        accepted = ", ".join(sorted(set(_DATATYPES.values())))
        raise ConfigError(f"{name!r} is a {tensor.dtype.name}; accepted are {accepted}")
    return TensorSpec(name, datatype, (-1,) if tensor.shape is None else tensor.shape, any_rank=tensor.shape is None)


def _labelled(spec: TensorSpec, labels: tuple[str, ...]) -> TensorSpec:
    if labels and spec.datatype != "BYTES" and spec.shape and spec.shape[-1] in {len(labels), -1}:
        return TensorSpec(spec.name, spec.datatype, spec.shape, labels=labels)
    return spec


def _described(signature: SignatureCall, labels: tuple[str, ...]) -> Signature:
    """Describe a SignatureDef's inputs and outputs, by name."""
    return Signature(
        tuple(_spec(name, tensor) for name, tensor in signature.inputs.items()),
        tuple(_labelled(_spec(name, tensor), labels) for name, tensor in signature.outputs.items()),
    )


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):  # what has no dimensions comes as a scalar, a string as bytes
        value = np.array(value, dtype=object if isinstance(value, bytes) else None)
    return value.astype(np.float32) if value.dtype == _BFLOAT16 else value
