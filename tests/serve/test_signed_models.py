"""`serinus serve --verify_models`: whole processes, real signatures; from the folder to the answer."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import lightgbm_support
from deferred import Deferred
from serinus.cli.serving.options import parse
from serinus.cli.serving.serve import _server_settings
from serinus.cli.serving.startup_models import discover, find_models
from serinus.errors import ConfigError
from serve_support import serving

model_signing = Deferred("model_signing._cli", "main")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keys")
    private, public = folder / "signer.key", folder / "signer.pub"
    for words in (
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private],
        ["ec", "-in", private, "-pubout", "-out", public],
    ):
        subprocess.run(["openssl", *words], check=True, timeout=30, capture_output=True)
    return private, public


def make(folder: Path, key: Path | None, name: str = "") -> Path:
    folder.mkdir(parents=True)
    # Loaded here, so that the record of its verification is there, and signed: no server then imports LightGBM.
    lightgbm_support.load(lightgbm_support.save(lightgbm_support.train("binary"), folder))
    if name:
        (folder / "model-settings.json").write_text(json.dumps({"name": name}))
    if key is not None:
        sign(folder, key)
    return folder


def sign(folder: Path, key: Path) -> None:
    words = ["sign", "key", str(folder), "--private_key", str(key), "--signature", str(folder / "model.sig")]
    model_signing(words, standalone_mode=False)


def request(server: Any, name: str) -> tuple[int, Any]:
    status, metadata = server.ask("GET", f"/v2/models/{name}")
    assert status == 200
    (spec,) = metadata["inputs"]
    columns = spec["shape"][-1]
    body = {
        "inputs": [{"name": spec["name"], "shape": [1, columns], "datatype": spec["datatype"], "data": [0] * columns}]
    }
    return server.ask("POST", f"/v2/models/{name}/infer", body)


def arguments(model: Path, keys: tuple[Path, Path], *more: str) -> list[str]:
    return ["--verify_models", str(keys[1]), *more, str(model)]


def test_settings_are_those_of_the_copy_and_name_what_is_signed(tmp_path: Path, keys: tuple[Path, Path]):
    model = make(tmp_path / "fraud", keys[0])
    (settings,) = find_models(parse(arguments(model, keys), {}), None).models
    assert settings.name == "fraud"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", settings.digest)
    assert settings.model_dir is not None
    assert tmp_path not in settings.model_dir.parents
    assert find_models(parse([str(model)], {}), None).models[0].digest == ""


def test_a_model_directory_may_not_lead_out_of_what_is_signed(tmp_path: Path, keys: tuple[Path, Path]):
    model = make(tmp_path / "fraud", None)
    (tmp_path / "other.txt").write_bytes((model / "model.txt").read_bytes())
    (model / "model-settings.json").write_text(json.dumps({"parameters": {"uri": "../other.txt"}}))
    sign(model, keys[0])
    with pytest.raises(ConfigError, match=r"leads out|no such"):
        find_models(parse(arguments(model, keys, "--allow_uri", str(tmp_path)), {}), None)


def test_a_repository_checks_each_model_at_start_and_at_each_load(tmp_path: Path, keys: tuple[Path, Path]):
    repository = tmp_path / "models"
    make(repository / "good", keys[0])
    make(repository / "named", keys[0], "other-name")
    make(repository / "unsigned", None)
    altered = make(repository / "altered", keys[0])
    with (altered / "model.txt").open("a") as opened:
        opened.write("\n")
    parsed = parse(["--model_repository", str(repository), "--verify_models", str(keys[1])], {})
    found = find_models(parsed, repository)
    assert {settings.name for settings in found.models} == {"good", "other-name"}
    assert "not signed" in found.broken["unsigned"]
    assert re.search(r"altered since it was signed.*model\.txt", found.broken["altered"])
    with pytest.raises(ConfigError, match="not signed"):
        discover(parsed, repository, "unsigned")
    sign(repository / "unsigned", keys[0])
    loaded = discover(parsed, repository, "unsigned")
    assert loaded
    assert loaded[0].digest.startswith("sha256:")
    (repository / "good" / "added.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"good/added\.json: added since it was signed"):
        discover(parsed, repository, "good")


def test_versions_of_a_model_are_signed_as_one_folder(tmp_path: Path, keys: tuple[Path, Path]):
    model = tmp_path / "fraud"
    make(model / "1", None)
    make(model / "2", None)
    sign(model, keys[0])
    parsed = parse(["--model_repository", str(tmp_path), "--verify_models", str(keys[1])], {})
    found = find_models(parsed, tmp_path)
    assert [(settings.name, settings.version) for settings in found.models] == [("fraud", "1"), ("fraud", "2")]
    assert len({settings.digest for settings in found.models}) == 1


WRONG = {
    "no such key": (["--verify_models=/nowhere/key"], "--verify_models /nowhere/key: no such file"),
    "a path": (["--model_signature=../sig"], "the name of a file in the model's folder"),
    "no name": (["--model_signature="], "the name of a file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_cannot_be_meant_end_the_start(case: str):
    words, said = WRONG[case]
    with pytest.raises(ConfigError, match=said):
        _server_settings(parse(["./m", *words], {}).values)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["inline", "process"])
def test_the_digest_is_in_metadata_metrics_and_the_access_log(how: str, tmp_path: Path, keys: tuple[Path, Path]):
    stack = contextlib.ExitStack()
    model = make(tmp_path / "fraud", keys[0])
    # A short one: the native front of gRPC has a socket there, and a socket's path has 107 characters.
    temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
    words = arguments(model, keys, "--access_log", "--execution", how)
    with stack, serving(tmp_path, *words, environment={"TMPDIR": str(temporary)}) as server:
        status, _ = request(server, "fraud")
        metadata = server.ask("GET", "/v2/models/fraud")[1]
        page = server.ask("GET", "/metrics")[1]
        copies = list(temporary.glob("serinus-model-*"))
        server.stop()
    assert status == 200
    digest = metadata["properties"]["digest"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    assert f'serinus_model_digest_info{{digest="{digest}",model="fraud",version=""}} 1' in page
    log = server.log.read_text()
    assert re.search(rf"POST /v2/models/fraud/infer status 200 .* model fraud digest {digest}", log)
    assert f"the signature is good for {keys[1]}, digest {digest}" in log
    assert len(copies) == 1
    assert not list(temporary.glob("serinus-model-*")), "the copy goes with the server"


@pytest.mark.slow
def test_workers_agree_on_the_digest_and_a_load_of_an_altered_model_leaves_the_old_one(
    tmp_path: Path, keys: tuple[Path, Path]
):
    repository = tmp_path / "models"
    model = make(repository / "fraud", keys[0])
    words = ["--model_repository", str(repository), "--verify_models", str(keys[1]), "--workers", "2"]
    with serving(tmp_path, *words) as server:
        page = server.ask("GET", "/metrics")[1]
        with (model / "model.txt").open("a") as opened:
            opened.write("\n")
        status, refused = server.ask("POST", "/v2/repository/models/fraud/load", {})
        assert request(server, "fraud")[0] == 200
        after = server.ask("GET", "/metrics")[1]
        server.stop()
    # Counted on the worker that was asked, and on each that was to have the model too.
    assert re.search(r"serinus_model_signature_refusals_total 0(?:\.0)?\n", page)
    assert re.search(r"serinus_model_signature_refusals_total [12](?:\.0)?\n", after)
    assert len(re.findall(r"serinus_model_digest_info\{.*\} 1(?:\.0)?\n", page)) == 1, re.findall(
        r"serinus_model_digest_info.*", page
    )
    assert status >= 400
    assert "altered since it was signed" in refused["error"]


@pytest.mark.slow
def test_an_unsigned_model_ends_the_start_with_its_name(tmp_path: Path, keys: tuple[Path, Path]):
    model = make(tmp_path / "fraud", None)
    command = [sys.executable, "-m", "serinus.cli", "serve", "--http_port=0", "--grpc_port=0", *arguments(model, keys)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert f"{model}: not signed: there is no model.sig" in ended.stderr
