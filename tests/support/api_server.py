"""A real kube-apiserver with etcd on loopback, and KServe's CustomResourceDefinitions: the API server's part of a cluster, and no more.

No controller and no webhook runs, so nothing is made of an InferenceService and its admission rules are not asked; strict decoding, schemas, server-side
apply, field managers, dry runs and RBAC are the real ones. What a test needs and where it is looked for, as controller-runtime's envtest does:

- `kube-apiserver` and `etcd`: the variables KUBE_APISERVER and ETCD (or TEST_ASSET_KUBE_APISERVER and TEST_ASSET_ETCD), the folder
  KUBEBUILDER_ASSETS, the PATH; etcd is also Debian's package `etcd-server`;
- KServe's CRDs: KSERVE_CRDS, files or folders with CustomResourceDefinitions, split by colons: `config/crd/full` and `test/crds` of a checkout of
  github.com/kserve/kserve. Those of Gateway API, Knative and Prometheus Operator are taken too where they are there.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kustomize_support import KUBECTL, Loader
from prometheus_server import free_port
from waiting import wait_until

__all__ = ["ApiServer", "api_server", "missing"]

_START_S = 90.0


def binary(name: str) -> Path | None:
    """A program of a control plane, or None."""
    variable = name.upper().replace("-", "_")
    for each in (variable, f"TEST_ASSET_{variable}"):
        if os.environ.get(each):
            return Path(os.environ[each])
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (Path(assets) / name).is_file():
        return Path(assets) / name
    found = shutil.which(name)
    return Path(found) if found else None


def crd_files() -> list[Path]:
    """Files with CustomResourceDefinitions."""
    named = [Path(word) for word in os.environ.get("KSERVE_CRDS", "").split(os.pathsep) if word]
    return [file for each in named for file in (sorted(each.rglob("*.yaml")) if each.is_dir() else [each])]


def missing() -> str:
    """What a real API server lacks here, as the reason of a skip; empty: nothing."""
    lacking = [name for name in ("kube-apiserver", "etcd") if binary(name) is None]
    if lacking:
        return f"needs {' and '.join(lacking)}: on the PATH, in KUBEBUILDER_ASSETS, or named by KUBE_APISERVER and ETCD"
    return (
        "" if crd_files() else "needs KServe's CRDs: KSERVE_CRDS=KSERVE/config/crd/full:KSERVE/test/crds of a checkout"
    )


@dataclass(frozen=True, slots=True)
class ApiServer:
    """A running API server.

    Attributes:
        folder: holds `admin.kubeconfig`, and the logs.
        url: `https://127.0.0.1:PORT`.
    """

    folder: Path
    url: str

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig."""
        return self.folder / "admin.kubeconfig"

    def kubectl(self, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the real kubectl as the administrator; both streams as text."""
        command = [str(KUBECTL), f"--kubeconfig={self.kubeconfig}", *words]
        home = {**os.environ, "HOME": str(self.folder)}  # its cache of what is served is of this server
        return subprocess.run(command, capture_output=True, text=True, input=text, check=False, timeout=120, env=home)

    def run(self, *words: str, text: str | None = None) -> str:
        """Run kubectl, which succeeds; its output."""
        done = self.kubectl(*words, text=text)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr or done.stdout}"
        return done.stdout

    def ask(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json", token: str = "administrator"
    ) -> tuple[int, dict[str, Any]]:
        """Send one request; status and JSON (what is none is an empty object), of a refusal too."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind, "Accept": "application/json"}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60, context=context) as answer:
                return answer.status, _document(answer.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, _document(refused.read())


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError:  # `ok` of /readyz
        return {}
    return document if isinstance(document, dict) else {}


@contextlib.contextmanager
def api_server(folder: Path, crds: Iterable[Path] | None = None) -> Iterator[ApiServer]:
    """Start etcd and kube-apiserver, and establish CRDs; stopped on exit.

    Args:
        folder: empty; takes data, keys and logs.
        crds: files; None: those that KSERVE_CRDS names.
    """
    with contextlib.ExitStack() as stack:
        etcd, peer, port = free_port(), free_port(), free_port()
        (folder / "etcd").mkdir(mode=0o700)
        stack.enter_context(
            _running(
                folder / "etcd.log",
                str(binary("etcd")),
                f"--data-dir={folder / 'etcd'}",
                f"--listen-client-urls=http://127.0.0.1:{etcd}",
                f"--advertise-client-urls=http://127.0.0.1:{etcd}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                "--unsafe-no-fsync",
            )
        )
        key = folder / "service-account.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True, timeout=60)
        (folder / "tokens.csv").write_text("administrator,administrator,administrator,system:masters\n")
        process, log = stack.enter_context(
            _running(
                folder / "kube-apiserver.log",
                str(binary("kube-apiserver")),
                f"--etcd-servers=http://127.0.0.1:{etcd}",
                "--bind-address=127.0.0.1",
                f"--secure-port={port}",
                f"--cert-dir={folder / 'certificates'}",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--token-auth-file={folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/16",
                # Both wait for objects that kube-controller-manager makes.
                "--disable-admission-plugins=ServiceAccount",
            )
        )
        server = ApiServer(folder, f"https://127.0.0.1:{port}")

        def answers() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            certificate = folder / "certificates" / "apiserver.crt"
            if not certificate.is_file() or "END CERTIFICATE" not in certificate.read_text():
                return False
            if not server.kubeconfig.is_file():
                _write_access(server, certificate.read_bytes())
            with contextlib.suppress(OSError):  # it does not listen yet
                return server.ask("GET", "/readyz")[0] == 200
            return False

        wait_until(answers, limit_s=_START_S)
        _establish(server, list(crd_files() if crds is None else crds))
        server.run("create", "namespace", "models")
        yield server


@contextlib.contextmanager
def _running(log: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with log.open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        yield process, log
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _write_access(server: ApiServer, certificate: bytes) -> None:
    (server.folder / "ca.crt").write_bytes(certificate)
    authority = base64.b64encode(certificate).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "admin",
        "clusters": [{"name": "one", "cluster": {"server": server.url, "certificate-authority-data": authority}}],
        "users": [{"name": "admin", "user": {"token": "administrator"}}],
        "contexts": [{"name": "admin", "context": {"cluster": "one", "user": "admin", "namespace": "models"}}],
    }
    server.kubeconfig.write_text(yaml.safe_dump(document))


def _establish(server: ApiServer, files: list[Path]) -> None:
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        for document in yaml.load_all(file.read_text(encoding="utf-8"), Loader):
            if (
                isinstance(document, dict)
                and document.get("kind") == "CustomResourceDefinition"
                and "versions" in document.get("spec", {})
            ):
                # Its conversion is done by a webhook of KServe's manager, which does not run.
                document["spec"].pop("conversion", None)
                document.pop("status", None)
                found.setdefault(document["metadata"]["name"], document)
    for document in found.values():
        status, told = server.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", document)
        assert status in (200, 201), f"{document['metadata']['name']}: {told.get('message')}"

    served = {
        (f"/apis/{spec['group']}/{version['name']}", spec["names"]["plural"])
        for spec in (document["spec"] for document in found.values())
        for version in spec["versions"]
        if version["served"]
    }

    def waiting() -> set[tuple[str, str]]:
        left = {}
        for path, _ in served:
            if path not in left:
                left[path] = {each["name"] for each in server.ask("GET", path)[1].get("resources", ())}
        return {(path, plural) for path, plural in served if plural not in left[path]}

    wait_until(lambda: not waiting(), limit_s=60)
