"""`OnnxModel`: an ONNX graph behind the Open Inference Protocol; its inputs and outputs are read off the graph."""

from __future__ import annotations

import logging
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from serinus import Call, Model, TensorSpec
from serinus.artifacts import Extra, find_file, override_specs, read_labels
from serinus.content.model_content import Content
from serinus.errors import ConfigError, InvalidInput
from serinus.model import Provenance
from serinus.protocol.datatypes import NUMPY_DTYPES
from serinus.settings import ModelSettings

try:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument as _Refused
except ImportError as error:  # pragma: no cover # the image has it
    raise ImportError("onnx_server needs ONNX Runtime: pip install 'serinus[onnx-server]'") from error

from .containers import CONTAINERS, Maps, OptionalTensor, Sequenced, read_classes
from .external_weights import find_weights, giving_weights, unmixed
from .session_threads import SessionThreads

__all__ = ["OnnxModel"]

_log = logging.getLogger("serinus.onnx")

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_GENERATED: Final = re.compile(r"unk__|.*_dim_\d+$|[su]\d+$|\W|\d|(?i:none|unknown|dynamic_axes_\w*)$")
"""Names of dimensions that exporters make up (tf2onnx, PyTorch), a new one for each dimension: they say nothing."""
_WHOLE_TENSOR: Final = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
"""Operators (ai.onnx, com.microsoft) that quantise a whole tensor by its own range: what `onnxruntime.quantization.quantize_dynamic` writes."""
_BATCH: Final = re.compile(r"(?i)batch")
_COMPUTES: Final = re.compile(
    r"device_id|use_arena|gpu_mem_limit|arena_extend_strategy|cudnn_conv\w+|do_copy_in_default_stream|enable_cuda_graph|use_tf32|prefer_nhwc|sdpa_kernel"
    r"|fuse_conv_bias|enable_skip_layer_norm_strict_mode|use_ep_level_unified_stream|tunable_op_(enable|tuning_enable|max_tuning_duration_ms)"
    r"|trt_(max_workspace_size|max_partition_iterations|min_subgraph_size|(fp16|bf16|int8|dla)_enable|dla_core|cuda_graph_enable|sparsity_enable"
    r"|force_sequential_engine_build|context_memory_sharing_enable|layer_norm_fp32_fallback|build_heuristics_enable|detailed_build_log"
    r"|builder_optimization_level|auxiliary_streams|tactic_sources|profile_(min|max|opt)_shapes|engine_hw_compatible|op_types_to_exclude"
    r"|weight_stripped_engine_enable)"
)
"""Options of providers that a model's own files may set (onnxruntime.ai/docs/execution-providers, CUDA and TensorRT): numbers and words of how to compute."""
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Settings of a model, in ONNX Runtime's words."""

    providers: list[str]
    options: list[dict[str, Any]]
    """Of each provider."""
    fallback: bool
    level: Any
    binding: str
    labels: str


class OnnxModel(Model):
    """One `.onnx` file; `extra_settings` are its settings."""

    extra_settings: ClassVar[Mapping[str, str]] = {
        "providers": 'execution providers in order of preference: ["cpu"] (default), "cuda", "tensorrt"',
        "provider_fallback": "true: a provider that is not there is left out; false (default): the start is refused",
        "provider_options": 'options of ONNX Runtime\'s by provider: {"tensorrt": {"trt_fp16_enable": true}}',
        "labels": "file of class names for the classification extension (default labels.txt or labels.json)",
        "io_binding": "inputs are copied to the device once, outputs stay there until all are ready: auto (default: on a GPU), on, off",
        "optimization": "graph optimisation: all (default), extended, basic, disable",
    }

    platform: ClassVar[str] = "onnxruntime_onnx"
    batching = "earned"

    def load(self) -> None:
        """Open the graph.

        Raises:
            ConfigError: no file, a graph that ONNX Runtime refuses, or a provider that is not there.
        """
        extra = Extra(self.settings.extra, known=tuple(self.extra_settings))
        names = extra.texts("providers", ("cpu",))
        fallback = extra.truth("provider_fallback")
        labels_file = extra.text("labels")
        levels = {
            "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
            "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        }
        level = extra.choice("optimization", tuple(levels))
        binding = extra.choice("io_binding", ("auto", "on", "off"))
        provider_options = extra.mapping("provider_options")
        extra.close()
        if other := [name for name, values in provider_options.items() if not isinstance(values, Mapping)]:
            raise ConfigError(f"extra setting 'provider_options': those of {other[0]!r} are no object")
        if "provider_options" not in self.settings.told:
            _check_options(provider_options, self.settings)
        providers = _providers(names, fallback=fallback)
        named = {_PROVIDERS.get(name.lower(), name): values for name, values in provider_options.items()}
        options = [dict(named.get(name, {})) for name in providers]
        wanted = _Wanted(providers, options, fallback, levels[level], binding, labels_file)
        file = find_file(self.settings, (".onnx",), preferred=("model.onnx",), contents=(Content.ONNX,))

        with unmixed(file) as own:
            self._open(own, file, wanted)

    def _open(self, own: Path, file: Path, wanted: _Wanted) -> None:
        """Open the graph.

        Args:
            own: by which it is read.
            file: its name.
            wanted: the settings.

        Raises:
            ConfigError: ONNX Runtime refuses it, or it cannot be served.
        """
        try:
            self._session = _session(own, wanted, self.settings.native_threads)
        except ConfigError:
            raise
        except Exception as error:  # ONNX Runtime raises a dozen classes of its own, all meaning "not loadable"
            raise ConfigError(f"{own}: ONNX Runtime refuses it: {error}") from error
        active = self._session.get_providers()
        missing = [name for name in wanted.providers if name not in active]
        if missing and not wanted.fallback:
            raise ConfigError(
                f"{', '.join(missing)} did not start (active: {', '.join(active)}); see its log above, or set provider_fallback"
            )
        own_inputs = tuple(_spec(node) for node in self._session.get_inputs())
        own_outputs = self._described(own, own_inputs)
        nodes = [*self._session.get_inputs(), *self._session.get_outputs()]
        self.unbatchable_reason = _declared_no(nodes) or _computed_no(own) or self._sequence_no()
        free = all(spec.shape and spec.shape[0] == -1 for spec in (*own_inputs, *own_outputs))
        self.batchable = free and not self.unbatchable_reason
        if not self.settings.outputs:
            own_outputs = self._ranked(own_inputs, own_outputs)
        self._input_names = [spec.name for spec in own_inputs]
        self._output_names = [spec.name for spec in own_outputs]
        self.inputs = override_specs(own_inputs, self.settings.inputs, "inputs")
        outputs = override_specs(own_outputs, self.settings.outputs, "outputs")
        labels = read_labels(self.settings, wanted.labels)
        self.outputs = tuple(_labelled(spec, labels) for spec in outputs)
        on_gpu = active[0] != "CPUExecutionProvider"
        self._binds = (wanted.binding == "on" or (wanted.binding == "auto" and on_gpu)) and not self._containers
        self._output_device = "cuda" if on_gpu else "cpu"
        self.computes_in = (
            "FP16" if on_gpu else ""
        )  # TF32, as exact as FP16, is what CUDA computes FP32 in; TensorRT may use FP16
        facts = {"onnxruntime": onnxruntime.__version__, "providers": active, "extra": dict(self.settings.extra)}
        self.provenance = Provenance((file, *find_weights(file)), facts)
        self._sessions = SessionThreads(self._session, self.settings.native_threads)
        if not (self.settings.threads or on_gpu or self._binds) and self.settings.warmup:
            files = self.provenance.files
            self._sessions.measure(
                lambda threads: _session(own, wanted, threads),
                lambda rows: _zeros(own_inputs, rows),
                file_bytes=sum(each.stat().st_size for each in files),
                most_rows=self.settings.batch.max_batch_rows if self.batchable else 1,
            )
            self._session = self._sessions.of(1)
        self.details |= {"file": file.name, "providers": ",".join(active), "threads": str(self._sessions.choice)}
        classes = {
            spec.name: list(container.classes)
            for name, spec in zip(self._output_names, self.outputs, strict=True)
            if isinstance(container := self._containers.get(name), Maps)
        }
        if classes:
            self.details["classes"] = classes

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Run the graph.

        Args:
            inputs: one array per graph input, of the graph's types; BYTES elements are UTF-8.
            call: `outputs` limits what is computed.

        Raises:
            InvalidInput: a string that is not UTF-8, or shapes that the graph refuses.
        """
        feeds = {
            own: _text(name, inputs[name]) if inputs[name].dtype == object else np.ascontiguousarray(inputs[name])
            for own, name in zip(self._input_names, (spec.name for spec in self.inputs), strict=True)
            if name in inputs
        }
        chosen = [
            (own, spec)
            for own, spec in zip(self._output_names, self.outputs, strict=True)
            if call.outputs is None or spec.name in call.outputs
        ]
        names = [own for own, _ in chosen]
        try:
            if self._binds:
                results = self._bound(feeds, names)
            else:
                first = next(iter(feeds.values()), None)
                session = self._sessions.of(len(first) if first is not None and first.ndim else 1)
                results = session.run(names, feeds)
        except _Refused as error:
            raise InvalidInput(f"the graph refuses the request: {error}") from None
        if self._containers:
            results = [
                self._containers[own].array(result) if own in self._containers else result
                for own, result in zip(names, results, strict=True)
            ]
        return {
            spec.name: _bytes(result) if spec.datatype == "BYTES" else result
            for (_, spec), result in zip(chosen, results, strict=True)
        }

    def _described(self, file: Path, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Describe the outputs, and keep how those are made tensors that are none.

        Raises:
            ConfigError: one can be no tensor.
        """
        self._containers: dict[str, Maps | Sequenced | OptionalTensor] = {}
        zipmaps: Mapping[str, Any] | None = None
        specs = []
        for node in self._session.get_outputs():
            kind, value = next(
                ((kind, found[1]) for kind, type_ in CONTAINERS.items() if (found := type_.fullmatch(node.type))),
                ("", ""),
            )
            datatype = _DATATYPES.get(value)
            if not datatype:
                specs.append(_spec(node))
            elif kind == "optional":
                self._containers[node.name] = OptionalTensor(node.name)
                specs.append(TensorSpec(node.name, datatype, _shape(node)))
            elif kind == "sequence":
                tried = self._tried(inputs, [node.name])
                rank = int(np.ndim(tried[0][0])) if tried and tried[0] else 0
                if not tried:
                    _log.warning(
                        "output '%s' is a sequence, and the graph does not run on zeros, so its tensors are taken for scalars; if they "
                        "are not, name the outputs and their shapes in model-settings.json, the sequence's length first",
                        node.name,
                    )
                self._containers[node.name] = Sequenced(node.name, datatype, rank)
                specs.append(TensorSpec(node.name, datatype, (-1,) * (1 + rank)))
            else:
                zipmaps = read_classes(file) if zipmaps is None else zipmaps
                classes = zipmaps.get(node.name)
                if classes is None:  # no operator but ZipMap makes such maps
                    specs.append(_spec(node))
                    continue
                self._containers[node.name] = Maps(node.name, classes, datatype)
                labels = tuple(map(str, classes))
                specs.append(TensorSpec(node.name, datatype, (-1, len(classes)), labels=labels))
        return tuple(specs)

    def _sequence_no(self) -> str:
        """Say which output is a sequence; empty: none is."""
        name = next((one.name for one in self._containers.values() if isinstance(one, Sequenced)), "")
        return f"its output '{name}' is a sequence, whose length is no number of rows" if name else ""

    def _tried(self, inputs: tuple[TensorSpec, ...], names: list[str]) -> list[Any]:
        """Run the graph once on zeros, free dimensions 1; nothing where it refuses that."""
        try:
            return list(self._session.run(names, _zeros(inputs, 1)))
        except Exception as error:  # noqa: BLE001 # whatever a graph says to zeros
            self._refusal = str(error).splitlines()[0] if str(error) else repr(error)
            return []

    def _ranked(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Find out how many dimensions the outputs have that seem to be scalars: ONNX Runtime tells an unknown rank as none.

        The graph is run once on zeros, free dimensions 1; where it refuses that, the outputs stay scalars, with a warning.
        """
        unsure = [spec.name for spec in outputs if not spec.shape]
        if not unsure:
            return outputs
        found = self._tried(inputs, unsure)
        if not found:
            _log.warning(
                "the graph does not say how many dimensions %s has, and does not run on zeros (%s); unless it has none, name the "
                "outputs and their shapes in model-settings.json",
                ", ".join(unsure),
                self._refusal,
            )
            return outputs
        ranks = {name: np.ndim(value) for name, value in zip(unsure, found, strict=True)}
        return tuple(TensorSpec(s.name, s.datatype, (-1,) * ranks[s.name]) if s.name in ranks else s for s in outputs)

    def _bound(self, feeds: Mapping[str, np.ndarray], names: list[str]) -> list[Any]:
        """Run with inputs copied to the device once and outputs left there until all are ready."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            if array.dtype == object:
                return list(self._session.run(names, dict(feeds)))  # strings cannot be bound
            binding.bind_cpu_input(name, array)
        for name in names:
            binding.bind_output(name, self._output_device)
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()


def _session(graph: Path, wanted: _Wanted, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = wanted.level
    # Spinning threads would burn a container's CPU limit between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with giving_weights(options, graph) as read:
        return onnxruntime.InferenceSession(
            str(read), options, providers=wanted.providers, provider_options=wanted.options
        )


def _zeros(inputs: Sequence[TensorSpec], rows: int) -> dict[str, np.ndarray]:
    """Inputs of zeros and empty texts, with so many rows; other free dimensions are 1."""
    feeds: dict[str, np.ndarray] = {}
    for spec in inputs:
        shape = [1 if size == -1 else size for size in spec.shape]
        if spec.shape[:1] == (-1,):
            shape[0] = rows
        feeds[spec.name] = (
            np.full(shape, "", object) if spec.datatype == "BYTES" else np.zeros(shape, NUMPY_DTYPES[spec.datatype])
        )
    return feeds


def _providers(wanted: tuple[str, ...], *, fallback: bool) -> list[str]:
    """Turn short names into ONNX Runtime's.

    Raises:
        ConfigError: an unknown one, or one that this build has not, unless `fallback`.
    """
    available = onnxruntime.get_available_providers()
    problems, providers = [], []
    for name in wanted:
        full = _PROVIDERS.get(name.lower())
        if full is None:
            problems.append(f"provider {name!r} is unknown; known are {', '.join(_PROVIDERS)}")
        elif full in available:
            providers.append(full)
        elif not fallback:
            problems.append(
                f"provider {name!r} is not in this build of ONNX Runtime (it has {', '.join(available)}); use the -gpu image, "
                "or set provider_fallback to true"
            )
    if problems:
        raise ConfigError(problems)
    if "CPUExecutionProvider" not in providers:
        providers.append("CPUExecutionProvider")  # single operators without a GPU kernel need it
    return providers


def _check_options(options: Mapping[str, Any], settings: ModelSettings) -> None:
    """Refuse options of a model's own files that can do more than set how a provider computes.

    TensorRT loads the libraries that they name, as plugins, and writes to the paths that they name; some of CUDA's are addresses of functions.

    Raises:
        ConfigError: naming all that nobody allowed.
    """
    named = {name for values in options.values() for name in values}
    refused = sorted(
        f"onnxruntime.{name}"
        for name in named
        if not _COMPUTES.fullmatch(name) and not settings.allows(f"onnxruntime.{name}")
    )
    if refused:
        raise ConfigError(
            f"extra setting 'provider_options' names {', '.join(name.partition('.')[2] for name in refused)}, and no library is loaded and no file written "
            f"because a model directory says so; to trust it, start with --allow_implementation '{','.join(refused)}', or give --extra "
            "provider_options=... yourself"
        )


def _spec(node: Any) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise ConfigError(
            f"{node.name!r} is a {node.type}; accepted are {', '.join(_DATATYPES)}, and for outputs sequences, optional ones and a map "
            "for each row (ZipMap) of these"
        )
    return TensorSpec(node.name, datatype, _shape(node))


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in node.shape)


def _declared_no(nodes: Sequence[Any]) -> str:
    """Say why the graph's own names of dimensions mean that the first is not the batch's; empty where they do not."""
    firsts: dict[str, str] = {}
    for node in nodes:
        names = [size if isinstance(size, str) and not _GENERATED.match(size) else "" for size in node.shape]
        if names and names[0]:
            firsts.setdefault(names[0], node.name)
        other = next((name for name in names[1:] if _BATCH.match(name)), "")
        if other and not _BATCH.match(names[0]):
            return f"'{node.name}' has its batch ('{other}') in another dimension than the first"
    if len(firsts) > 1:
        (name, tensor), (another, its) = list(firsts.items())[:2]
        return f"the first dimension of '{tensor}' is called '{name}' and that of '{its}' '{another}'"
    return ""


def _computed_no(file: Path) -> str:
    """Say which operator of the graph computes one scale from all rows; empty: none does.

    A check by random rows may miss it: where only the index of the largest number comes out, a coarser scale seldom changes it.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as body:
        for operator in _WHOLE_TENSOR:
            # NodeProto.op_type is field 4, a string, of onnx.proto: tag 0x22, length, text.
            if body.find(b"\x22" + bytes([len(operator)]) + operator.encode()) >= 0:
                return f"its operator {operator} scales all rows of a batch by the largest number in it"
    return ""


def _labelled(spec: TensorSpec, labels: tuple[str, ...]) -> TensorSpec:
    if labels and spec.datatype in NUMPY_DTYPES and spec.shape and spec.shape[-1] in {len(labels), -1}:
        return TensorSpec(spec.name, spec.datatype, spec.shape, labels=labels)
    return spec


def _text(name: str, array: np.ndarray) -> np.ndarray:
    """Decode BYTES to the str objects that ONNX strings are."""
    result = np.empty(array.shape, dtype=object)
    try:
        result.ravel()[:] = [item.decode() for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r}: a value is not UTF-8 text: {error.reason}") from None
    return result


def _bytes(array: Any) -> np.ndarray:
    found = np.asarray(array, dtype=object)
    result = np.empty(found.shape, dtype=object)
    result.ravel()[:] = [item.encode() if isinstance(item, str) else bytes(item) for item in found.ravel()]
    return result
