"""`serinus optimize`: make a model's forms, compare them, keep the fastest that agrees.

Theory of operation. The original is loaded in a worker process and predicts the samples: the reference. Its package's
exporter makes further forms, and each new form's package is asked in turn. Every form is loaded in a process of its own and
compared with the reference. Then all are timed in rounds: in each round every form, in an order that turns, runs each batch
size for a moment, alone; a change of the machine's speed meets all forms alike, and the median over rounds drops a bad one.
A form that fails is named with its reason; an interrupt keeps the rounds that are complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ...errors import ConfigError
from ...loading.directory import settings_from_directory
from ...protocol.types import TensorSpec
from .agreement import TOLERANCES, Agreement, compare
from .form_process import FormFailed, FormProcess
from .model_forms import Form, Skipped, copy_file, write_settings
from .samples import generate_samples, read_samples

__all__ = ["Comparison", "Measured", "Options", "Timing", "choose", "optimize", "write_winner"]

Prefer = Literal["balanced", "latency", "throughput"]

_COMPARED_ROWS = 64
_MOST_CALLS = 1000
_LEAST_GAIN = 1.05
"""Two runs of one form differ by a few per cent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user chose."""

    batches: tuple[int, ...] = (1, 8, 64)
    rounds: int = 5
    seconds: float = 0.3
    """Of each batch size of each form in each round; at least one call."""
    tolerance: float | None = None
    """Largest relative difference, for every precision; None: `TOLERANCES`."""
    least_top1: float = 0.99
    threads: int = 0
    """Native threads of one predict; 0: the CPU limit."""
    prefer: Prefer = "balanced"


@dataclass(slots=True)
class Timing:
    """One form at one batch size."""

    round_medians_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """CPU time of a call, by round: unlike the latency, hardly moved by what else runs on the machine."""

    @property
    def latency_s(self) -> float:
        """Median over rounds of the median call."""
        return statistics.median(self.round_medians_s)


@dataclass(slots=True)
class Measured:
    """One form and what was found of it."""

    form: Form
    agreement: Agreement
    accepted: bool
    """Within tolerance."""
    load_s: float = 0.0
    rss_bytes: int = 0
    timings: dict[int, Timing] = field(default_factory=dict)
    """By batch size."""

    def speed(self, other: Measured, batch: int) -> float:
        """How many times as fast as another form."""
        return other.timings[batch].latency_s / self.timings[batch].latency_s


@dataclass(slots=True)
class Comparison:
    """Everything: what is printed, saved and plotted."""

    model: str
    inputs: str
    """Where the rows came from."""
    options: Options
    measured: list[Measured] = field(default_factory=list)
    """The original first."""
    skipped: list[Skipped] = field(default_factory=list)
    winner: Measured | None = None
    interrupted: bool = False


Say = Callable[[str, float], None]
"""Told what is being done, and the share that is done."""


def optimize(path: Path, output: Path, options: Options, *, inputs: Path | None = None, say: Say) -> Comparison:
    """Make and compare the forms of a model.

    Args:
        path: model directory or file.
        output: folder; forms go to `output/forms`.
        options: sizes and tolerances.
        inputs: `.npz` or request; None: generated.
        say: progress.

    Returns:
        What was found, also after an interrupt; `winner` is None only where nothing was timed.

    Raises:
        ConfigError: no model, unusable inputs, or the original itself does not run.
    """
    if len(settings_from_directory(path)) > 1:
        raise ConfigError(f"{path}: holds several models; name one of its folders")
    comparison = Comparison(str(path), str(inputs) if inputs else "generated (normal numbers, seed 0)", options)
    given = read_samples(inputs) if inputs else None
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serinus-optimize-")))
        running: dict[str, FormProcess] = {}
        try:
            say("the original", 0.0)
            original, reference = _original(path, given, options, work, stack)
            comparison.measured.append(original[0])
            running[original[0].form.name] = original[1]
            pending = [dataclasses.replace(original[0].form, exports=True)]
            while pending:
                source = pending.pop(0)
                for item in _exports(source, work, output / "forms", say):
                    if isinstance(item, Skipped):
                        comparison.skipped.append(item)
                        continue
                    if item.exports:
                        pending.append(item)
                    say(f"comparing {item.name}", 0.0)
                    process = stack.enter_context(FormProcess())
                    try:
                        measured = _compare(item, process, reference, options, work)
                    except FormFailed as error:
                        comparison.skipped.append(Skipped(item.name, f"does not run: {error}"))
                        continue
                    comparison.measured.append(measured)
                    running[item.name] = process
            _time(comparison, running, say)
        except KeyboardInterrupt:
            comparison.interrupted = True
        for measured in comparison.measured:
            with contextlib.suppress(FormFailed, KeyboardInterrupt):
                measured.rss_bytes = running[measured.form.name].ask("memory")["rss_bytes"]
    comparison.measured = [measured for measured in comparison.measured if measured.timings]
    comparison.winner = choose(comparison.measured, options)
    return comparison


def choose(measured: Sequence[Measured], options: Options) -> Measured | None:
    """Choose the fastest accepted form: by the geometric mean over batch sizes, or at the smallest or largest only.

    Args:
        measured: the original first; it is always accepted, and stays where nothing is faster by 5 %.
        options: what is preferred.
    """
    if not measured:
        return None
    original = measured[0]
    batches = {"latency": options.batches[:1], "throughput": options.batches[-1:]}.get(options.prefer, options.batches)

    def speed(candidate: Measured) -> float:
        shared = [batch for batch in batches if batch in candidate.timings and batch in original.timings]
        return statistics.geometric_mean([candidate.speed(original, batch) for batch in shared]) if shared else 0.0

    fastest = max((candidate for candidate in measured if candidate.accepted), key=speed)
    return fastest if speed(fastest) > _LEAST_GAIN else original


def write_winner(comparison: Comparison, folder: Path) -> Path:
    """Write the winner as a model directory that `serinus serve` runs; what an earlier run left there goes.

    Raises:
        ConfigError: nothing was measured.
    """
    if comparison.winner is None:
        raise ConfigError("nothing was measured, so there is no winner")
    # Aside at first: the earlier winner may be what was measured.
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    _write_form(comparison.winner.form, fresh)
    if folder.is_dir():
        shutil.rmtree(folder)
    fresh.rename(folder)
    return folder


def _write_form(form: Form, folder: Path) -> None:
    if form.path.is_dir():
        copy_file(form.path, folder)
        settings = settings_from_directory(folder)[0]
    else:
        copy_file(form.path, folder / form.path.name)
        for name in ("labels.txt", "labels.json", form.path.name + ".verdict.json"):
            if (form.path.parent / name).is_file():
                copy_file(form.path.parent / name, folder / name)
        settings = settings_from_directory(form.path)[0]
    if not (folder / "model-settings.json").exists():
        write_settings(folder, package=form.package, source=settings)


def _original(
    path: Path, given: Mapping[str, np.ndarray] | None, options: Options, work: Path, stack: contextlib.ExitStack
) -> tuple[tuple[Measured, FormProcess], dict[str, np.ndarray]]:
    process = stack.enter_context(FormProcess())
    try:
        loaded = process.ask("load", path=path, threads=options.threads)
        specs = [
            TensorSpec(name, datatype, tuple(shape), optional=optional)
            for name, datatype, shape, optional in loaded["inputs"]
        ]
        samples = given if given is not None else generate_samples(specs, max(_COMPARED_ROWS, *options.batches))
        np.savez(work / "samples.npz", allow_pickle=False, **samples)
        process.ask("samples", path=work / "samples.npz")
        rows = min(_COMPARED_ROWS, len(next(iter(samples.values()))))
        process.ask("predict", rows=rows, output=work / "reference.npz")
    except FormFailed as error:
        raise ConfigError(f"{path}: the model itself does not run: {error}") from None
    with np.load(work / "reference.npz", allow_pickle=False) as archive:
        reference = {name: archive[name] for name in archive.files}
    form = Form(name="original", path=path, package=loaded["package"], note=_note(loaded["details"]))
    measured = Measured(form, compare(reference, reference), accepted=True, load_s=loaded["load_s"])
    return (measured, process), reference


def _note(details: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {details[key]}" for key in ("engine", "file", "signature") if details.get(key))


def _exports(source: Form, work: Path, output: Path, say: Say) -> list[Form | Skipped]:
    """Ask a form's package for further forms, in a process that ends with it: exporters take much memory."""
    say(f"exporting from {source.name}", 0.0)
    output.mkdir(parents=True, exist_ok=True)
    with FormProcess() as process:
        try:
            answer = process.ask(
                "export", path=source.path, package=source.package, samples=work / "samples.npz", output=output
            )
        except FormFailed as error:
            return [Skipped(f"exports of {source.name}", str(error))]
    found: list[Form | Skipped] = []
    for entry in answer["found"]:
        kind = entry.pop("kind")
        if kind == "form":
            found.append(Form(**{**entry, "path": Path(entry["path"])}))
        else:
            found.append(Skipped(**entry))
    return found


def _compare(
    form: Form, process: FormProcess, reference: Mapping[str, np.ndarray], options: Options, work: Path
) -> Measured:
    loaded = process.ask("load", path=form.path, threads=options.threads)
    process.ask("samples", path=work / "samples.npz")
    rows = len(next(iter(reference.values())))
    process.ask("predict", rows=rows, output=work / "outputs.npz")
    with np.load(work / "outputs.npz", allow_pickle=False) as archive:
        agreement = compare(reference, {name: archive[name] for name in archive.files})
    tolerance = TOLERANCES[form.precision] if options.tolerance is None else options.tolerance
    return Measured(form, agreement, agreement.within(tolerance, options.least_top1), load_s=loaded["load_s"])


def _time(comparison: Comparison, running: Mapping[str, FormProcess], say: Say) -> None:
    """Time all forms in interleaved rounds."""
    options, measured = comparison.options, comparison.measured
    for batch in options.batches:
        for item in measured:
            say(f"warming up {item.form.name}, batch {batch}", 0.0)
            running[item.form.name].ask("time", rows=batch, seconds=0.0, most=2)
    steps = options.rounds * len(options.batches) * len(measured)
    done = 0
    for turn in range(options.rounds):
        for batch in options.batches:
            first = turn % len(measured)
            for item in (*measured[first:], *measured[:first]):
                say(f"round {turn + 1} of {options.rounds}: {item.form.name}, batch {batch}", done / steps)
                answer = running[item.form.name].ask("time", rows=batch, seconds=options.seconds, most=_MOST_CALLS)
                timing = item.timings.setdefault(batch, Timing())
                timing.round_medians_s.append(statistics.median(answer["times_s"]))
                timing.cpu_s.append(answer["cpu_s"])
                done += 1
