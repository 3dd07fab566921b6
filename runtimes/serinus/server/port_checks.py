"""Whether the ports that a server is to listen on are free, asked before its models are loaded, which may take minutes.

A port is bound and let go again; that it is still free when the server listens is not promised, and an error then says the same.
"""

from __future__ import annotations

import itertools
import socket

from ..errors import ConfigError
from ..settings import ServerSettings

__all__ = ["check_ports", "port_problems"]


def port_problems(settings: ServerSettings) -> list[str]:
    """Name ports that two settings ask for; REST and metrics may share one, on which both are then answered."""
    ports = {
        "http_port": settings.http_port,
        "metrics_port": settings.metrics_port,
        "health_port": settings.health_port,
        "grpc_port": settings.grpc_port if settings.enable_grpc else 0,
    }
    return [
        f"--{name} and --{other} are both {port}; choose another for one of them, or 0 for any that is free"
        for (name, port), (other, taken) in itertools.combinations(ports.items(), 2)
        if port and port == taken and (name, other) != ("http_port", "metrics_port")
    ]


def check_ports(settings: ServerSettings, *, only_metrics: bool = False) -> None:
    """Find out whether the ports can be listened on.

    Args:
        settings: host and ports; 0 is any that is free, and needs no check.
        only_metrics: those of inference are bound already.

    Raises:
        ConfigError: with every port that is taken, or not this user's to take.
    """
    ports = {"metrics_port": settings.metrics_port or 0, "health_port": settings.health_port or 0}
    if settings.metrics_port == settings.http_port:
        ports["metrics_port"] = 0
    if not only_metrics:
        ports = {"http_port": settings.http_port, "grpc_port": settings.grpc_port * settings.enable_grpc, **ports}
    problems = [
        problem for name, port in ports.items() if port and (problem := _problem(settings.host, port, name)) is not None
    ]
    if problems:
        raise ConfigError(problems)


def _problem(host: str, port: int, setting: str) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            return f"{setting}: cannot listen on {host}:{port}: {error.strerror}; choose another, or 0"
    return None
