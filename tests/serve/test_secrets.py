"""Everything that a server with secrets writes is searched for them: log, errors, answers, shown settings, the commands of the client."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import grpc
import warm_start
from serinus.protocol import _open_inference_pb2 as pb
from serve_support import serving

TOKEN, REPOSITORY_TOKEN = "s3cret-request-token-0123456789", "s3cret-repository-token-0123456789"
OTHER = "s3cret-of-a-client-0123456789"
MODEL = """
from serinus import Model, TensorSpec

class Fails(Model):
    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)

    def predict(self, inputs, call):
        raise ValueError("asked https://me:s3cret-in-a-url@host/ with authorization: Bearer s3cret-in-an-error")
"""


def files(tmp_path: Path) -> list[str]:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "tokens").write_text(TOKEN + "\n")
    (tmp_path / "repository").write_text(REPOSITORY_TOKEN + "\n")
    return [
        "--class", f"{tmp_path / 'model.py'}:Fails", "--model_name", "m", "--warmup", "false", "--access_log",
        "--log_level", "DEBUG", "--token_file", str(tmp_path / "tokens"),
        "--repository_token_file", str(tmp_path / "repository"),
    ]  # fmt: skip


def serinus(*words: str, environment: dict[str, str] | None = None) -> str:
    """Run the command; gives all that it writes."""
    ended = warm_start.run(words, env=os.environ if environment is None else environment)
    return ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("http", ["thin", "uvicorn"])
def test_no_secret_is_in_anything_that_a_server_writes(http: str, tmp_path: Path):
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
    message = pb.ModelInferRequest(model_name="m").SerializeToString()
    said: list[str] = []
    with serving(tmp_path, *files(tmp_path), "--http", http, "--log_format", "json") as server:
        for token in (TOKEN, OTHER):
            headers = {"Authorization": f"Bearer {token}"}
            for method, path in (
                ("POST", "/v2/models/m/infer"),
                ("POST", f"/v2/models/m/infer?access_token={OTHER}"),
                ("GET", f"/nowhere?api_key={OTHER}"),
                ("POST", "/v2/repository/models/m/load"),
                ("GET", "/metrics"),
                ("DELETE", "/v2"),
            ):
                said.append(str(server.ask(method, path, body if method == "POST" else None, headers)))
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                for path in ("ModelInfer", "RepositoryModelLoad"):
                    call = channel.unary_unary(f"/inference.GRPCInferenceService/{path}").future(
                        message, metadata=(("authorization", f"Bearer {token}"),), timeout=20
                    )
                    said.append(f"{call.exception()} {call.trailing_metadata()}")
        (tmp_path / "wrong").write_text(OTHER)
        url = f"http://127.0.0.1:{server.http_port}"
        asked = ("infer", "m", "x=1", "--url", url, "--token")
        said.extend(serinus(*asked, str(tmp_path / name)) for name in ("tokens", "wrong"))
        (tmp_path / "tokens").write_text(f"{OTHER}\nhalf a token\n")
        server.process.send_signal(signal.SIGHUP)
        server.stop()
    log = server.log.read_text()
    said.append(log)
    said.append(
        serinus(
            "serve",
            *files(tmp_path),
            "--extra",
            f"api_key={OTHER}",
            "--extra",
            f"url=redis://:{OTHER}@r",
            "--show_settings",
        )
    )
    said.append(serinus("serve", *files(tmp_path), "--extra", f"redis://:{OTHER}@host"))
    assert "model 'm' failed" in log, "the model's error was logged"
    assert "ValueError" in log
    assert "access_token=***" in log
    for text in said:
        for secret in (TOKEN, REPOSITORY_TOKEN, OTHER, "s3cret"):
            assert secret not in text, text[max(0, text.find(secret) - 200) : text.find(secret) + 60]


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["SERINUS_TOKEN", "SERINUS_REPOSITORY_TOKEN"])
def test_a_bad_token_in_a_variable_ends_the_start_and_is_not_told(variable: str, tmp_path: Path):
    said = serinus("serve", *files(tmp_path)[:4], environment={variable: "s3cret"})
    assert f"{variable}: holds 6 characters" in said
    assert "s3cret" not in said
