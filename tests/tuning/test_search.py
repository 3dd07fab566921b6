"""The pure parts of tuning: objectives, arrivals, quantiles, the search on a simulated server, limits and patches."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serinus.errors import ConfigError
from serinus.loading import settings_from_directory
from serinus.manifests.reading import load_documents
from serinus.tuning.limits import Observed, Resources, binding, observe, read_metrics, resources
from serinus.tuning.load.arrivals import poisson_arrivals
from serinus.tuning.load.latencies import LatencyHistogram
from serinus.tuning.patches import PATCH_FILE, check_target, operations, write_patch
from serinus.tuning.search import Axis, Config, Found, Trial, axes_for, search
from serinus.tuning.slo import Slo, parse_duration, parse_rate
from serinus.tuning.tuner import write_model_settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p99<20ms", [(0.99, 0.02)]),
        ("p50 < 5ms , p99.9<1s", [(0.5, 0.005), (0.999, 1.0)]),
        ("P95<=1.5ms", [(0.95, 0.0015)]),
        ("p99<800us", [(0.99, 0.0008)]),
    ],
)
def test_an_slo_reads_as_it_is_written(text: str, expected: list[tuple[float, float]]) -> None:
    slo = Slo.parse(text)
    assert [(o.quantile, pytest.approx(o.limit_s)) for o in slo.objectives] == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p99<20", "'p99<20': not an objective"),
        ("latency<20ms", "not an objective"),
        ("p100<20ms", "not an objective"),
        ("p0<20ms", "above 0"),
        ("p99<0ms", "above 0"),
        ("p99<1ms,p99<2ms", "bounded twice"),
        ("p50<9ms,p99<2ms", "never bind"),
        ("", "not an objective"),
    ],
)
def test_a_bad_slo_is_refused_with_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Slo.parse(text)


def test_rates_and_durations_take_their_units() -> None:
    assert parse_rate("200/s") == parse_rate("200") == parse_rate("12000/min") == 200
    assert parse_duration("2m") == parse_duration("120s") == parse_duration("120") == 120
    for wrong in ("fast", "0/s", "-3/s"):
        with pytest.raises(ConfigError, match="not a rate"):
            parse_rate(wrong)
    with pytest.raises(ConfigError, match="not a duration"):
        parse_duration("soon")


@given(st.lists(st.floats(1e-6, 100), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_quantile_is_the_nearest_rank_to_one_per_cent(values: list[float], quantile: float) -> None:
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(1, math.ceil(round(quantile * len(values), 6))) - 1]
    assert exact * (1 - 1e-9) <= histogram.quantile(quantile) <= exact * 1.01


def test_failed_requests_are_the_slowest_of_all_and_histograms_merge() -> None:
    one, other = LatencyHistogram(), LatencyHistogram()
    for _ in range(98):
        one.add(0.001)
    other.add(math.inf)
    other.add(math.inf)
    one.merge(other)
    assert one.count == 100
    assert one.quantile(0.98) == pytest.approx(0.001, rel=0.01)
    assert one.quantile(0.99) == math.inf


def test_arrivals_are_poisson_and_repeat_with_their_seed() -> None:
    times = poisson_arrivals(500.0, 60.0, seed=3)
    assert np.array_equal(times, poisson_arrivals(500.0, 60.0, seed=3))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(30_000, rel=0.03)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential: the deviation is the mean
    assert times[0] >= 0
    assert times[-1] < 60


class SimulatedServer:
    """A queue whose p99 is service / (1 - load): more workers give capacity, delay gives latency, threads shorten."""

    def __init__(self, *, base_s: float = 0.002, cpus: int = 4) -> None:
        self.base_s, self.cpus = base_s, cpus
        self.runs: list[Trial] = []

    def capacity(self, config: Config) -> float:
        busy = min(self.cpus, config.workers * config.instances * max(1, config.threads))
        return busy / self.base_s * (0.5 if config.max_batch_rows == 1 else 1.0)

    def __call__(self, config: Config, rate: float) -> Trial:
        load = rate / self.capacity(config)
        p99 = math.inf if load >= 1 else self.base_s / (1 - load) + config.max_delay_s
        failed = 0 if load < 1 else 500
        trial = Trial(
            config=config,
            rate_per_s=rate,
            achieved_per_s=min(rate, self.capacity(config)),
            sent=1000,
            failed=failed,
            quantiles_s={0.99: p99},
        )
        self.runs.append(trial)
        return trial


def searched(server: SimulatedServer, slo: str, *, left: int = 1000, start: Config | None = None) -> Found:
    axes = axes_for(4, typical_rows=1, inline=False, limit_s=Slo.parse(slo).strictest.limit_s)
    return search(
        server,
        start or Config(threads=1),
        axes,
        Slo.parse(slo),
        first_rate_per_s=100.0,
        left_s=lambda: left - len(server.runs),
    )


def test_the_search_finds_the_capacity_of_the_best_settings_in_few_runs() -> None:
    server = SimulatedServer()
    found = searched(server, "p99<20ms")
    # 20 ms = 2 ms / (1 - load): load 0.9 of 4 CPUs at 2 ms = 1800/s.
    assert found.best is not None
    assert 1800 / 1.2 <= found.best.rate_per_s <= 1800
    assert server.capacity(found.config) == 2000
    assert found.config.max_delay_s == 0
    assert found.ended == "settled"
    assert len(server.runs) <= 45


def test_a_small_budget_ends_the_search_with_the_best_so_far() -> None:
    server = SimulatedServer()
    found = searched(server, "p99<20ms", left=5)
    assert found.ended == "budget"
    assert len(server.runs) == 5
    assert found.best is not None


def test_an_slo_that_nothing_holds_gives_the_nearest_that_was_found() -> None:
    found = searched(SimulatedServer(base_s=0.05), "p99<20ms")
    assert found.best is None
    assert found.nearest.quantiles_s[0.99] >= 0.05
    assert found.nearest.quantiles_s[0.99] == min(trial.quantiles_s[0.99] for trial in found.trials)


def test_settings_that_do_not_start_lose_and_stop_nothing() -> None:
    class Fragile(SimulatedServer):
        def __call__(self, config: Config, rate: float) -> Trial:
            if config.workers > 1:
                trial = Trial(
                    config=config, rate_per_s=rate, achieved_per_s=0, sent=1, failed=1, quantiles_s={0.99: math.inf}
                )
                self.runs.append(trial)
                return trial
            return super().__call__(config, rate)

    found = searched(Fragile(), "p99<20ms")
    assert found.best is not None
    assert found.config.workers == 1
    assert found.config.threads == 4 or found.config.instances > 1


def test_a_generator_that_cannot_follow_makes_the_rate_a_lower_bound() -> None:
    class Slow(SimulatedServer):
        def __call__(self, config: Config, rate: float) -> Trial:
            trial = super().__call__(config, rate)
            if rate < 300:
                return trial
            late = {0.99: 1.0}
            return Trial(
                config=config, rate_per_s=rate, achieved_per_s=300, sent=1000, failed=0, quantiles_s=late, kept_up=False
            )

    found = searched(Slow(cpus=1), "p99<20ms")
    assert found.ended == "generator"
    assert found.best is not None
    assert found.best.rate_per_s < 300


def test_an_interrupt_keeps_the_trials() -> None:
    class Interrupted(SimulatedServer):
        def __call__(self, config: Config, rate: float) -> Trial:
            if len(self.runs) == 3:
                raise KeyboardInterrupt
            return super().__call__(config, rate)

    found = searched(Interrupted(), "p99<20ms")
    assert found.ended == "interrupted"
    assert len(found.trials) == 3


def test_one_cpu_has_no_workers_to_try_and_inline_models_no_threads() -> None:
    names = [axis.name for axis in axes_for(1, typical_rows=1, inline=True, limit_s=0.02)]
    assert names == ["max_batch_rows", "max_delay_s"]
    assert all(isinstance(axis, Axis) for axis in axes_for(8, typical_rows=1, inline=False, limit_s=0.02))


def seen(**changes: float) -> Observed:
    values = {
        "queue_s": 0.001,
        "compute_s": 0.005,
        "request_s": 0.006,
        "batch_rows": 2.0,
        "cpus": 1.0,
        "rss_bytes": 2e8,
    }
    return Observed(**{**values, **changes})


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (seen(rss_bytes=9.5e9), "memory"),
        (seen(cpus=1.9), "compute"),
        (seen(queue_s=0.02), "queue"),
        (seen(compute_s=0.0001, queue_s=0.00001, request_s=0.0002), "transport"),
        (seen(), "compute"),
    ],
    ids=["memory", "cpus busy", "queue", "transport", "one slow predict"],
)
def test_the_limit_that_binds_is_named_from_the_metrics(observed: Observed, expected: str) -> None:
    name, why = binding(observed, cpus=2, memory_bytes=1e10, mean_latency_s=0.007)
    assert name == expected
    assert why


def test_lost_requests_are_no_time_spent_in_sockets() -> None:
    name, why = binding(seen(), cpus=2, memory_bytes=1e10, mean_latency_s=math.inf)
    assert name == "compute"
    assert "inf" not in why


def test_metrics_are_summed_over_labels_and_turned_into_means() -> None:
    before = read_metrics('serinus_queue_seconds_sum{model="a"} 1\nserinus_queue_seconds_count{model="a"} 10\n')
    after = read_metrics(
        '# HELP x\nserinus_queue_seconds_bucket{le="1"} 9\nserinus_queue_seconds_sum{model="a"} 3\n'
        'serinus_queue_seconds_count{model="a"} 15\nserinus_queue_seconds_count{model="b"} 5\n'
        "process_cpu_seconds_total 4\nprocess_resident_memory_bytes 100\n"
    )
    observed = observe(before, after, 2.0)
    assert observed.queue_s == pytest.approx(0.2)
    assert observed.cpus == 2.0
    assert observed.rss_bytes == 100


def test_replicas_carry_the_load_with_room_to_spare() -> None:
    sized = resources(seen(rss_bytes=300 * 2**20), capacity_per_s=100, rate_per_s=250, cpus=2, latency_s=0.05)
    assert (sized.min_replicas, sized.max_replicas) == (4, 8)
    assert sized.container_concurrency == 5
    assert sized.memory_mib == 512


def test_settings_are_written_into_the_file_beside_what_it_says_already(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    written = {"name": "m", "implementation": "onnx_server", "batch": {"max_queue_rows": 7}, "parameters": {"uri": "."}}
    (tmp_path / "model-settings.json").write_text(json.dumps(written))
    config = Config(threads=2, execution="thread", instances=2, max_batch_rows=16, max_delay_s=0.002)
    write_model_settings(tmp_path, config)
    (settings,) = settings_from_directory(tmp_path)
    assert (settings.threads, settings.execution, settings.instances) == (2, "thread", 2)
    assert (settings.batch.max_batch_rows, settings.batch.max_delay_s) == (16, 0.002)
    assert settings.batch.max_queue_rows == 7
    assert settings.name == "m"


@pytest.mark.parametrize("form", ["model", "containers"])
def test_the_patch_renders_with_kubectl_and_keeps_the_files_comments(tmp_path: Path, form: str) -> None:
    server = (
        {"model": {"modelFormat": {"name": "xgboost"}}}
        if form == "model"
        else {"containers": [{"name": "kserve-container", "image": "x", "env": [{"name": "A", "value": "b"}]}]}
    )
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "fraud"},
        "spec": {"predictor": {"minReplicas": 1, **server}},
    }
    (tmp_path / "inferenceservice.yaml").write_text("# mine\n" + yaml.safe_dump(service))
    kustomization = "# ours\nresources:\n  - inferenceservice.yaml\n"
    (tmp_path / "kustomization.yaml").write_text(kustomization)
    wanted = Resources(cpu=2, memory_mib=512, min_replicas=3, max_replicas=6, container_concurrency=9)
    for _ in range(2):  # a second run replaces the first
        file, named = write_patch(tmp_path, Config(workers=2), wanted)
    assert named
    assert file.name == PATCH_FILE
    assert (tmp_path / "kustomization.yaml").read_text().startswith(kustomization.rstrip())
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", str(tmp_path)], capture_output=True, text=True, check=True)
    (document,) = load_documents(tmp_path)  # as `serinus lint` and `serinus up` read the folder
    assert document.get(("spec", "predictor", "minReplicas")) == 3
    predictor = yaml.safe_load(done.stdout)["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"], predictor["containerConcurrency"]) == (3, 6, 9)
    container = predictor["model"] if form == "model" else predictor["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "512Mi"}
    assert {"name": "SERINUS_WORKERS", "value": "2"} in container["env"]
    (tmp_path / "kustomization.yaml").unlink()
    (document,) = load_documents(tmp_path)  # the patch beside it is no manifest
    assert document.get(("spec", "predictor", "minReplicas")) == 1
    if form == "containers":
        assert {"name": "A", "value": "b"} in container["env"]
        assert container["image"] == "x"


def test_a_patched_predictor_keeps_its_gpu() -> None:
    had = {"limits": {"cpu": "9", "nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}
    wanted = Resources(cpu=2, memory_mib=512, min_replicas=1, max_replicas=2, container_concurrency=9)
    (first, *_) = operations({"model": {"resources": had}}, Config(), wanted)
    assert first["value"]["limits"] == {"cpu": "2", "memory": "512Mi", "nvidia.com/gpu": "1"}
    assert first["value"]["requests"] == first["value"]["limits"]


def test_a_target_is_checked_before_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serinus.cli.commands import tune as command
    from serinus.cli.main import main

    monkeypatch.setattr(command, "find_settings", lambda *_, **__: pytest.fail("it was searched for"))
    service = "kind: InferenceService\nmetadata: {name: a}\nspec: {predictor: %s}\n"
    (tmp_path / "none").mkdir()
    for name, predictor in (("two", "{model: {}}"), ("bad", "{pmml: {}}"), ("good", "{model: {}}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text(service % predictor)
    (tmp_path / "two" / "b.yaml").write_text(service % "{model: {}}")
    for name, told in (
        ("absent", "no such folder"),
        ("none", "0 InferenceServices"),
        ("two", "2 InferenceServices"),
        ("bad", "neither a model nor containers"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_target(tmp_path / name)
        words = ["tune", str(tmp_path), "--slo", "p99<20ms", "--write", str(tmp_path / name), "-o", str(tmp_path / "o")]
        assert main(words) == 1
    check_target(tmp_path / "good")
    check_target(tmp_path / "good" / "a.yaml")
    assert sorted(path.name for path in (tmp_path / "good").iterdir()) == ["a.yaml"]
    (tmp_path / "file").write_text("")
    assert main(["tune", str(tmp_path), "--slo", "p99<20ms", "-o", str(tmp_path / "file" / "x")]) == 1


def test_a_folder_without_an_inferenceservice_is_refused(tmp_path: Path) -> None:
    wanted = Resources(cpu=1, memory_mib=128, min_replicas=1, max_replicas=2, container_concurrency=1)
    with pytest.raises(ConfigError, match="0 InferenceServices"):
        write_patch(tmp_path, Config(), wanted)
