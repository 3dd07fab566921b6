"""Which API server to talk to, and as whom: a kubeconfig's context, or a pod's service account.

Source: kubernetes.io/docs/reference/config-api/kubeconfig.v1; "client-go credential plugins" (client.authentication.k8s.io/v1).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from ...errors import ConfigError
from ...secrecy import fault_without_content

__all__ = ["Access", "load_access"]

_POD: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_S: Final = 60.0
"""A token is read again after this: kubelets and plugins renew them in time."""


@dataclass(slots=True)
class Access:
    """An API server, and credentials for it."""

    host: str
    port: int
    prefix: str = ""
    """Of the path, where a proxy has one."""
    tls: ssl.SSLContext | None = None
    """None: plain HTTP."""
    namespace: str = "default"
    token: str = ""
    token_file: Path | None = None
    command: Mapping[str, Any] | None = None
    """A credential plugin: `command`, `args`, `env`."""
    _fresh: tuple[float, str] = field(default=(0.0, ""))

    def authorization(self) -> str | None:
        """Give the field Authorization; None: there is none.

        Raises:
            ConfigError: the token cannot be read, or the plugin fails.
        """
        if self.token:
            return f"Bearer {self.token}"
        if self.token_file is None and self.command is None:
            return None
        when, token = self._fresh
        if not token or time.monotonic() - when > _TOKEN_S:
            token = self._from_file() if self.token_file is not None else self._from_plugin()
            self._fresh = (time.monotonic(), token)
        return f"Bearer {token}"

    def _from_file(self) -> str:
        try:
            return Path(str(self.token_file)).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{self.token_file}: {error.strerror}; a service account's token was expected") from None

    def _from_plugin(self) -> str:
        plugin = self.command or {}
        words = [str(plugin.get("command")), *map(str, plugin.get("args") or ())]
        version = str(plugin.get("apiVersion") or "client.authentication.k8s.io/v1")
        info = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
        own = {str(each.get("name")): str(each.get("value")) for each in plugin.get("env") or ()}
        environment = {**os.environ, **own, "KUBERNETES_EXEC_INFO": json.dumps(info)}
        try:
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode:
                raise ConfigError(
                    f"{words[0]} gave no credentials (status {done.returncode}): {done.stderr.strip()[:300]}"
                )
            token = json.loads(done.stdout)["status"]["token"]
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(
                f"{words[0]}, which the kubeconfig names for credentials, cannot be run: {error}"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{words[0]} gave no ExecCredential with a token; certificates from plugins are not taken"
            ) from None
        return str(token)


def load_access(path: Path | None = None, context: str = "", environment: Mapping[str, str] = os.environ) -> Access:
    """Find the API server.

    Args:
        path: of a kubeconfig; None: KUBECONFIG's first file, else `~/.kube/config`, else the pod's service account.
        context: of the kubeconfig; empty: its current one.
        environment: usually the process's.

    Raises:
        ConfigError: there is none, or it does not say what is needed.
    """
    if path is None:
        named = [Path(each) for each in environment.get("KUBECONFIG", "").split(os.pathsep) if each]
        path = next((each for each in (*named, Path.home() / ".kube" / "config") if each.is_file()), None)
    if path is not None:
        return _from_kubeconfig(path, context)
    host = environment.get("KUBERNETES_SERVICE_HOST")
    if not host:
        raise ConfigError("no cluster: give --kubeconfig, set KUBECONFIG, or run in a pod with a service account")
    namespace = _POD / "namespace"
    return Access(
        host,
        int(environment.get("KUBERNETES_SERVICE_PORT", "443")),
        tls=ssl.create_default_context(cafile=str(_POD / "ca.crt")),
        namespace=namespace.read_text(encoding="utf-8").strip() if namespace.is_file() else "default",
        token_file=_POD / "token",
    )


def _from_kubeconfig(path: Path, wanted: str) -> Access:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; a kubeconfig was expected") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {fault_without_content(error)}; a kubeconfig was expected") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: a kubeconfig was expected")
    name = wanted or str(document.get("current-context") or "")
    context = _named(path, document, "contexts", name, "context")
    cluster = _named(path, document, "clusters", str(context.get("cluster")), "cluster")
    user = _named(path, document, "users", str(context.get("user")), "user") if context.get("user") else {}
    parts = urlsplit(str(cluster.get("server") or ""))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{path}: the server of cluster {context.get('cluster')} is {cluster.get('server')!r}; https://HOST was expected"
        )
    secure = parts.scheme == "https"
    return Access(
        parts.hostname,
        parts.port or (443 if secure else 80),
        prefix=parts.path.rstrip("/"),
        tls=_tls(path, cluster, user) if secure else None,
        namespace=str(context.get("namespace") or "default"),
        token=str(user.get("token") or ""),
        token_file=path.parent / str(user["tokenFile"]) if user.get("tokenFile") else None,
        command=user.get("exec"),
    )


def _named(path: Path, document: Mapping[str, Any], part: str, name: str, key: str) -> Mapping[str, Any]:
    entries = document.get(part)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(key), dict):
            return entry[key]
    raise ConfigError(f"{path}: {part} has no {key} {name!r}")


def _tls(path: Path, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext:
    try:
        authority = _bytes(path, cluster, "certificate-authority")
        tls = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if cluster.get("insecure-skip-tls-verify"):
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        certificate, key = _bytes(path, user, "client-certificate"), _bytes(path, user, "client-key")
        if certificate and key:
            # ssl takes files alone; this one is gone before the next statement.
            with tempfile.NamedTemporaryFile() as file:
                file.write(certificate + b"\n" + key)
                file.flush()
                tls.load_cert_chain(file.name)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{path}: its certificates cannot be read: {error}") from None
    return tls


def _bytes(path: Path, block: Mapping[str, Any], name: str) -> bytes:
    if block.get(f"{name}-data"):
        try:
            return base64.b64decode(str(block[f"{name}-data"]), validate=True)
        except binascii.Error as error:
            raise ValueError(f"{name}-data: {error}") from None
    return (path.parent / str(block[name])).read_bytes() if block.get(name) else b""
