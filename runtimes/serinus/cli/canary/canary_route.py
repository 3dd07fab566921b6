"""`serinus canary route`: an HTTPRoute for what KServe's own does not do."""

from __future__ import annotations

from typing import Annotated

import typer
import yaml

from ...canary.targets.gateway_routes import RouteOptions, make_route

__all__ = ["route"]


def route(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The InferenceService.")],
    *,
    host: Annotated[str, typer.Option(help="Its host at the gateway, as in status.url.")],
    canary: Annotated[str, typer.Option("--canary", help="The canary's name in spec.canary.")],
    stable: Annotated[str, typer.Option(help="spec.predictor.name, where it has one.")] = "",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Of the service.")] = "default",
    model: Annotated[str, typer.Option(help="Name of the model in URLs (default: the service's).")] = "",
    gateway: Annotated[str, typer.Option(help="NAMESPACE/NAME of the Gateway.")] = "kserve/kserve-ingress-gateway",
    shadow: Annotated[
        int, typer.Option(help="Percent of the requests that the canary gets a copy of; answers are dropped.")
    ] = 0,
    percent: Annotated[int, typer.Option(help="Percent of the requests that are the canary's.")] = 0,
    affinity: Annotated[
        str, typer.Option(help="cookie=NAME or header=NAME: the gateway keeps a session on one version.")
    ] = "",
) -> None:
    """Print an HTTPRoute beside KServe's (Standard mode, Gateway API): testers by X-Serinus-Revision, copies of requests, sessions.

    It is for the inference paths alone; everything else stays KServe's. Nothing is asked of a cluster.

    Example: `serinus canary route fraud --host fraud-prod.example.com --canary v2 --shadow 20 -n prod | kubectl apply -f -`
    """
    options = RouteOptions(
        name=name,
        namespace=namespace,
        host=host,
        canary=canary,
        stable=stable,
        model=model,
        gateway=gateway,
        shadow_percent=shadow,
        percent=percent,
        affinity=affinity,
    )
    typer.echo(yaml.safe_dump(make_route(options), sort_keys=False), nl=False)
