"""What Seldon Core 2's agent does with a model server: the folder that it fills, the calls that it makes, and the variables beside them.

Read off release 2.6 (scheduler/pkg/agent: client.go, rproxy.go, modelserver_controlplane/oip/v2.go, repository/mlserver;
operator/config/serverconfigs/mlserver.yaml). Nothing of Seldon's runs here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import grpc
import warm_start
from waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Agent", "Server", "model_server", "server_config"]

_GO_FIELDS = ("name", "inputs", "outputs", "platform", "versions", "parallel_workers", "implementation", "parameters")
_GO_PARAMETERS = ("uri", "version", "format", "content_type", "extra", "environment_tarball")
"""The agent reads model-settings.json into a struct and writes that back: what else is in the file is lost."""
_CLASSES = {"xgboost": ("mlserver_xgboost.XGBoostModel", ("json", "bst"))}
"""For some requirements it writes the settings itself, with MLServer's class and the first file of these suffixes."""


def server_config(folder: Path, http: int, grpc_port: int) -> dict[str, str]:
    """The variables of the ServerConfig `mlserver`; ports, host and folder are this machine's."""
    return {
        "MLSERVER_HTTP_PORT": str(http),  # 9000 there
        "MLSERVER_GRPC_PORT": str(grpc_port),  # 9500 there
        "MLSERVER_MODELS_DIR": str(folder),
        "MLSERVER_MODEL_PARALLEL_WORKERS": "1",
        "MLSERVER_LOAD_MODELS_AT_STARTUP": "false",
        "MLSERVER_GRPC_MAX_MESSAGE_LENGTH": "1048576000",
        "MLSERVER_HOST": "127.0.0.1",  # our image says 0.0.0.0, for a pod
    }


@dataclass(frozen=True)
class Server:
    """A running model server, and the folder that its container sees read-only."""

    folder: Path
    http: int
    grpc: int
    log: Path


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Be the agent, whose mount of the same folder is not read-only."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    try:
        yield
    finally:
        for path in (*folder.rglob("*"), folder):
            path.chmod(0o555)


@contextlib.contextmanager
def model_server(home: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Start what our image starts, by variables alone; alive on entry. It may not write into the folder, as in the pod.

    Args:
        home: an empty folder.
        environment: of the image and of the Server's podSpec.
    """
    folder, scratch = home / "models", home / "tmp"
    for made in (folder, scratch):
        made.mkdir()
    folder.chmod(0o555)
    http, grpc_port = _free_ports(2)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SERINUS_", "MLSERVER_"))}
    variables = {**clean, **server_config(folder, http, grpc_port), "SERINUS_CACHE_DIR": str(scratch), **environment}
    log = home / "serve.log"
    with log.open("w") as output:
        process = warm_start.start(
            ["serve"], env={**variables, "HOME": str(scratch)}, cwd=scratch, out=output, session=True, obeys=True
        )
    server = Server(folder, http, grpc_port, log)
    try:
        with Agent(server) as agent:

            def live() -> bool:
                assert process.poll() is None, log.read_text()
                return agent.is_live()

            wait_until(live, limit_s=60)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


class Agent:
    """The agent beside a model server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc}")
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def is_live(self) -> bool:
        """`Live`, on which the agent's start waits."""
        try:
            return self._stub.ServerLive(pb.ServerLiveRequest(), timeout=5).live
        except grpc.RpcError:
            return False

    def download(
        self,
        name: str,
        artifact: Path,
        *,
        version: int = 1,
        artifact_version: int | None = None,
        requirements: Sequence[str] = (),
        parameters: Mapping[str, str] | None = None,
    ) -> str:
        """`DownloadModelVersion`: fill `<folder>/<name>_<version>/1`; returns the name that the model is loaded by.

        Raises:
            LookupError: what makes Seldon fail the model: no settings of that version, or none can be written.
        """
        source = self._version_folder(artifact, artifact_version)
        loaded = f"{name}_{version}"
        with _writing(self._server.folder):
            self._fill(loaded, source, requirements, parameters or {})
        return loaded

    def _fill(self, loaded: str, source: Path, requirements: Sequence[str], parameters: Mapping[str, str]) -> None:
        target = self._server.folder / loaded / "1"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        file = target / "model-settings.json"
        settings = json.loads(file.read_text()) if file.exists() else self._written(target, requirements)
        kept = {key: value for key, value in settings.items() if key in _GO_FIELDS and value}
        inner = {key: value for key, value in (kept.get("parameters") or {}).items() if key in _GO_PARAMETERS and value}
        inner["version"] = "1"  # pinned: the version is in the name
        extra = {**inner.get("extra", {}), **parameters}
        kept |= {"name": loaded, "parameters": {**inner, **({"extra": extra} if extra else {})}}
        file.write_text(json.dumps(kept))

    @staticmethod
    def _version_folder(artifact: Path, wanted: int | None) -> Path:
        """`FindModelVersionFolder`: the top's settings, else those of the wanted, else of the highest numbered folder."""
        if (artifact / "model-settings.json").exists():
            return artifact
        found = {
            int(file.parent.name): file.parent
            for file in artifact.rglob("model-settings.json")
            if file.parent.name.isdecimal()
        }
        if wanted is not None:
            if wanted not in found:
                raise LookupError(f"no model-settings.json of version {wanted}")
            return found[wanted]
        return found[max(found)] if found else artifact

    @staticmethod
    def _written(folder: Path, requirements: Sequence[str]) -> dict[str, Any]:
        for requirement in requirements:
            implementation, suffixes = _CLASSES.get(requirement, ("", ()))
            for suffix in suffixes:
                for file in sorted(folder.glob(f"*.{suffix}")):
                    return {"implementation": implementation, "parameters": {"uri": f"./{file.name}"}}
        raise LookupError(f"can't create model-settings from requirements {list(requirements)}")

    def load(self, loaded: str) -> grpc.StatusCode:
        """`LoadModel`; returns what the agent makes its decisions by."""
        return self._call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=loaded))

    def unload(self, loaded: str) -> grpc.StatusCode:
        """`UnloadModel` and, where it went well, `RemoveModelVersion`."""
        code = self._call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=loaded))
        if code == grpc.StatusCode.OK:
            self._remove(loaded)
        return code

    def _remove(self, loaded: str) -> None:
        with _writing(self._server.folder):
            shutil.rmtree(self._server.folder / loaded, ignore_errors=True)

    def _call(self, method: str, request: Any) -> grpc.StatusCode:
        try:
            getattr(self._stub, method)(request, timeout=60)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def index(self) -> dict[str, str]:
        """`GetModels`: states by name."""
        models = self._stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=5).models
        return {model.name: model.state for model in models if model.name}

    def unload_all(self) -> None:
        """`UnloadAllModels`, when the agent starts again beside a server that did not."""
        for name, state in self.index().items():
            if state in ("READY", "LOADING"):
                code = self._call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=name))
                assert code in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND), code
            self._remove(name)

    def infer(self, model: str, loaded: str, body: Any, path: str = "infer") -> tuple[int, Any]:
        """The reverse proxy's REST: another path, two headers more, and after 404 or 400 a load and a second try."""
        asked = re.sub(
            r"(/v2/models/)([\w\-]+)(/versions/\w+)?(.*)$", rf"\g<1>{loaded}\g<4>", f"/v2/models/{model}/{path}"
        )
        for attempt in (1, 2):
            request = urllib.request.Request(
                f"http://127.0.0.1:{self._server.http}{asked}",
                json.dumps(body).encode(),
                {"Content-Type": "application/json", "seldon-model": model, "seldon-internal-model": loaded},
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, json.loads(answer.read())
            except urllib.error.HTTPError as error:
                if error.code not in (404, 400) or attempt == 2:
                    return error.code, json.loads(error.read())
            self.load(loaded)
        raise AssertionError("two tries end in an answer")

    def infer_grpc(self, loaded: str, request: Any) -> Any:
        """The reverse proxy's gRPC, which is also how a Pipeline's steps are asked: the request's model is called as it was loaded.

        Raises:
            grpc.RpcError: the server refuses.
        """
        request.model_name = loaded
        metadata = (("seldon-model", loaded.rpartition("_")[0]), ("seldon-internal-model", loaded))
        return self._stub.ModelInfer(request, metadata=metadata, timeout=60)
