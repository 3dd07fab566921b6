"""Which service, which counts: the options that the commands of `serinus canary` share, and what they make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ...canary.rollout.run_files import RunFiles
from ...canary.sources.business_metrics import WithBusiness, parse_metric
from ...canary.sources.gateway_keys import WithAffinityKeys
from ...canary.sources.pod_scrape import Endpoint, PodScrape
from ...canary.sources.prometheus_source import KNATIVE, SERINUS, PrometheusSource
from ...canary.sources.source import Source
from ...canary.targets.kserve_target import KServeTarget
from ...canary.targets.kubeconfig import load_access
from ...canary.targets.kubernetes_client import KubernetesClient
from ...canary.targets.local_target import LocalTarget
from ...canary.targets.target import Target
from ...canary.web.history import RunHistory
from ...canary.web.page import render_document
from ...errors import ConfigError
from ...manifests.reading import load_documents

__all__ = [
    "CanaryName",
    "Context",
    "Kubeconfig",
    "Name",
    "Namespace",
    "Records",
    "StateDir",
    "TakeOver",
    "make_files",
    "make_source",
    "make_target",
    "write_page",
]

Name = Annotated[str, typer.Argument(metavar="NAME", help="The InferenceService, NAME or NAMESPACE/NAME.")]
Namespace = Annotated[
    str,
    typer.Option(
        "--namespace", "-n", help="In this namespace of a cluster (default: what serinus up runs, if anything)."
    ),
]
Kubeconfig = Annotated[
    Path | None, typer.Option(help="Kubeconfig (default: KUBECONFIG, ~/.kube/config, the pod's own).")
]
Context = Annotated[str, typer.Option(help="Context of the kubeconfig.")]
StateDir = Annotated[Path, typer.Option("--state-dir", help="State folder of serinus up.")]
CanaryName = Annotated[str, typer.Option("--canary", help="Which entry of spec.canary, where there are several.")]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Own the fields that are moved, also where a GitOps controller does.")
]
Records = Annotated[
    Path | None, typer.Option("--records", help="Folder of looks and events (default: STATE_DIR/canary).")
]


def make_target(
    name: str,
    *,
    namespace: str,
    kubeconfig: Path | None,
    context: str,
    state_dir: Path,
    canary: str,
    take_over: bool = False,
    warm_s: float = 0.0,
    metrics_port: int = 8080,
    restore: Path | None = None,
) -> Target:
    """Find the service: in a cluster where one is named, or where nothing runs here; else what `serinus up` runs.

    Raises:
        ConfigError: there is neither.
    """
    is_here = (state_dir / "supervisor.json").is_file()
    if is_here and not (namespace or kubeconfig or context):
        return LocalTarget(state_dir, name, canary=canary, warm_s=warm_s)
    try:
        access = load_access(kubeconfig, context)
    except ConfigError as error:
        if namespace or kubeconfig or context:
            raise
        raise ConfigError(f"nothing runs in {state_dir} (serinus up PATH), and {error}") from None
    space, _, plain = name.rpartition("/")
    return KServeTarget(
        KubernetesClient(access),
        namespace or space or access.namespace,
        plain,
        canary=canary,
        take_over=take_over,
        keep_warm=warm_s > 0,
        metrics_port=metrics_port,
        old_predictor=None if restore is None else _predictor_of(restore, plain),
    )


def _predictor_of(path: Path, name: str) -> Mapping[str, Any]:
    """Read `spec.predictor` of a service out of a manifest."""
    for document in load_documents(path):
        predictor = document.get(("spec", "predictor"))
        if document.kind == "InferenceService" and document.name == name and isinstance(predictor, dict):
            return {key: value for key, value in predictor.items() if key != "canaryTrafficPercent"}
    raise ConfigError(f"--restore {path}: there is no InferenceService {name} with a predictor in it")


def make_source(
    target: Target,
    *,
    prometheus: str,
    selector: str,
    revision_label: str,
    series: Literal["serinus", "knative"],
    endpoints: list[str],
    metrics: list[str],
    errors: Literal["all", "server"],
) -> Source:
    """Choose where counts come from.

    Raises:
        ConfigError: options that do not go together, or are none of their forms.
    """
    if prometheus and endpoints:
        raise ConfigError("--prometheus and --endpoint: choose one; endpoints are asked without a Prometheus")
    if (selector or revision_label or series != "serinus") and not prometheus:
        raise ConfigError(
            "--selector, --revision-label and --series are of a Prometheus; name it with --prometheus URL"
        )
    fixed = [_endpoint(text) for text in endpoints]
    source: Source = (
        PrometheusSource(
            prometheus,
            selector=selector,
            series=KNATIVE if series == "knative" else SERINUS,
            revision_label=revision_label,
            errors=errors,
        )
        if prometheus
        else PodScrape((lambda: fixed) if fixed else target.endpoints, errors=errors)
    )
    if isinstance(target, LocalTarget) and not prometheus:
        source = WithAffinityKeys(source, target.access_log)
    business = [parse_metric(text) for text in metrics]
    twice = {each.name for each in business if sum(other.name == each.name for other in business) > 1}
    if twice:
        raise ConfigError(f"--metric {', '.join(sorted(twice))}: is given twice; one source a metric was expected")
    return WithBusiness(source, business) if business else source


def _endpoint(text: str) -> Endpoint:
    revision, equals, url = text.partition("=")
    if not equals or not url.startswith(("http://", "https://")):
        raise ConfigError(f"--endpoint {text}: REVISION=http://HOST:PORT/metrics was expected")
    return Endpoint(url, url, revision)


def make_files(records: Path | None, state_dir: Path, name: str) -> RunFiles:
    """Give the files of a service's runs."""
    return RunFiles(records if records is not None else state_dir / "canary", name)


def write_page(path: Path, histories: Sequence[RunHistory]) -> None:
    """Write runs as one HTML file, which needs nothing beside itself.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.write_text(render_document(histories), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
