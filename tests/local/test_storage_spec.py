"""`model.storage` with the secret storage-config, as KServe's webhook reads it, and fetches: refreshed, and with settings of their own."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from serinus.errors import ConfigError
from serinus.local.plan.container_environment import ConfigData, config_data
from serinus.local.plan.deployment_plan import PlanOptions
from serinus.local.plan.planner import Planner
from serinus.local.run.storage import fetch, read_storage_config
from serinus.manifests.documents import load_text
from serinus.manifests.inference_service import StorageUri, parse_inference_service
from serinus.manifests.problems import Problems
from serinus.manifests.serving_runtimes import parse_runtime

RUNTIME = (
    "apiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\nmetadata: {name: r}\nspec:\n"
    "  supportedModelFormats: [{name: tiny, autoSelect: true}]\n"
    "  containers: [{name: kserve-container, image: x, command: [sleep, '1']}]\n"
)
MINIO = {"type": "s3", "bucket": "models", "endpoint_url": "http://minio:9000", "access_key_id": "a"}


def secret(name: str = "storage-config", *, encoded: bool = False, **entries: object) -> str:
    texts = {key: each if isinstance(each, str) else json.dumps(each) for key, each in entries.items()}
    if encoded:
        data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
        return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ndata: {json.dumps(data)}\n"
    return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {json.dumps(texts)}\n"


def planned(
    storage: str, *secrets: str, annotations: str = "{}", local_file: dict[str, str] | None = None
) -> tuple[StorageUri | None, list[str]]:
    text = (
        f"apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {{name: a, annotations: {annotations}}}\n"
        f"spec:\n  predictor:\n    model:\n      modelFormat: {{name: tiny}}\n      storage: {storage}\n"
    )
    service = parse_inference_service(load_text(text, "isvc.yaml")[0])
    data = (
        config_data([document for each in secrets for document in load_text(each, "s.yaml")])
        if secrets
        else ConfigData()
    )
    problems = Problems()
    options = PlanOptions(storage_config=local_file or {})
    plan = Planner([parse_runtime(load_text(RUNTIME, "r.yaml")[0])], [], data, options, problems).plan(service)
    return plan.stable.predictor.storage[0] if plan else None, [str(problem) for problem in problems.errors]


@pytest.mark.parametrize(
    ("storage", "secrets", "uri"),
    [
        ("{key: minio, path: sklearn/model}", [secret(minio=MINIO)], "s3://models/sklearn/model"),
        ("{key: minio, path: /sklearn/model}", [secret(encoded=True, minio=MINIO)], "s3://models/sklearn/model"),
        ("{key: minio, path: m, parameters: {bucket: other}}", [secret(minio=MINIO)], "s3://other/m"),
        # Without a key: `default`, or `default_TYPE`; neither has to be there where parameters say enough.
        ("{path: m}", [secret(default=MINIO)], "s3://models/m"),
        ("{path: m, parameters: {type: s3, bucket: b}}", [secret(default_s3={"type": "s3"})], "s3://b/m"),
        ("{path: m, parameters: {type: s3, bucket: b}}", [], "s3://b/m"),
        ("{path: m, parameters: {type: hdfs}}", [], "hdfs://m"),
        ("{key: h, path: a/b}", [secret(h={"type": "webhdfs"})], "webhdfs://a/b"),
    ],
)
def test_a_storage_spec_becomes_type_bucket_and_path(storage: str, secrets: list[str], uri: str) -> None:
    found, errors = planned(storage, *secrets)
    assert not errors
    assert found is not None
    assert (found.uri, found.mount_path) == (uri, "/mnt/models")


@pytest.mark.parametrize(
    ("storage", "secrets", "said"),
    [
        (
            "{key: minio, path: m}",
            [],
            "key minio is not in Secret storage-config of namespace default; keys known: none",
        ),
        ("{key: minio, path: m}", [secret(other=MINIO)], "keys known: other: add the Secret's manifest, or give"),
        ("{key: minio, path: m}", [secret(minio="no JSON")], "entry minio of Secret storage-config is no JSON object"),
        ("{key: minio, path: m}", [secret(minio={"type": "s3", "port": 1})], "is no JSON object of texts"),
        ("{key: minio, path: m}", [secret(minio={"type": "s3"})], "storage type s3 needs a bucket"),
        ("{key: minio, path: m}", [secret(minio={"type": "ftp"})], "storage type ftp is not known"),
        ("{path: m}", [], "nothing says the storage's type: write type: one of s3, hdfs, webhdfs"),
    ],
)
def test_a_storage_spec_that_the_webhook_would_refuse_is_refused_in_words(
    storage: str, secrets: list[str], said: str
) -> None:
    found, errors = planned(storage, *secrets)
    assert found is None
    assert said in errors[0]
    assert errors[0].startswith("isvc.yaml:8:spec.predictor.model.storage")


def test_the_annotation_names_another_secret_and_a_local_file_wins_over_both() -> None:
    named = "{serving.kserve.io/storageSecretName: mine}"
    texts = [secret(k=MINIO), secret("mine", k={**MINIO, "bucket": "mine"})]
    assert planned("{key: k, path: m}", *texts, annotations=named)[0].uri == "s3://mine/m"  # type: ignore[union-attr]
    local = {"k": json.dumps({**MINIO, "bucket": "here"})}
    found, _ = planned("{key: k, path: m, parameters: {region: eu}}", *texts, annotations=named, local_file=local)
    assert found is not None
    assert found.uri == "s3://here/m"
    assert {key: json.loads(value) for key, value in found.settings} == {
        "STORAGE_CONFIG": {**MINIO, "bucket": "here"},
        "STORAGE_OVERRIDE_CONFIG": {"region": "eu"},
    }


def test_the_annotation_of_a_local_folder_stands_for_a_spec_whose_secret_is_not_there() -> None:
    found, errors = planned("{key: k, path: m}", annotations="{serinus.dev/local-storage-uri: ../model}")
    assert not errors
    assert found is not None
    assert found.uri == "../model"


def test_a_file_stands_for_the_secret_as_a_mapping_or_as_its_manifest(tmp_path: Path) -> None:
    file = tmp_path / "storage.yaml"
    file.write_text('minio: {type: s3, bucket: b}\nplain: \'{"type": "hdfs"}\'\n')
    assert read_storage_config(file) == {"minio": '{"type": "s3", "bucket": "b"}', "plain": '{"type": "hdfs"}'}
    file.write_text(secret(encoded=True, minio=MINIO))
    assert json.loads(read_storage_config(file)["minio"]) == MINIO
    for text, said in (("[1]", "expected a mapping"), ("{", "cannot be read")):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_storage_config(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_storage_config(tmp_path / "none")


def test_a_pulled_model_is_fetched_again_and_a_failed_pull_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    served, cache = tmp_path / "served", tmp_path / "cache"
    served.mkdir()
    (served / "m.txt").write_text("one")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}/m.txt"

        def get(*, pull: bool) -> str:
            return (fetch(uri, base=served, cache=cache, mounts={}, pull=pull) / "m.txt").read_text()

        assert get(pull=False) == "one"
        (served / "m.txt").write_text("two")
        assert get(pull=False) == "one"
        assert get(pull=True) == "two"
        (served / "m.txt").unlink()
        with pytest.raises(ConfigError, match="404"):
            get(pull=True)
        assert get(pull=False) == "two"
        assert len(list(cache.iterdir())) == 1
        server.shutdown()


def test_a_spec_s_settings_reach_the_fetch_alone_and_another_endpoint_is_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The package belongs to KServe and is not installed here; what counts is what it is given.
    (tmp_path / "kserve_storage.py").write_text(
        textwrap.dedent("""
            import os, pathlib
            class Storage:
                @staticmethod
                def download(uri, folder):
                    if uri.endswith("/bad"):
                        raise RuntimeError("no such bucket")
                    text = os.environ.get("STORAGE_CONFIG", "") + os.environ.get("STORAGE_OVERRIDE_CONFIG", "")
                    pathlib.Path(folder, "told").write_text(text)
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def get(uri: str, **settings: str) -> Path:
        return fetch(uri, base=tmp_path, cache=tmp_path / "cache", mounts={}, settings=settings)

    plain = get("s3://b/m")
    assert (plain / "told").read_text() == ""
    config = json.dumps(MINIO)
    there = get("s3://b/m", STORAGE_CONFIG=config)
    assert (there / "told").read_text() == config
    assert there != plain
    assert get("s3://b/m", STORAGE_CONFIG=config, STORAGE_OVERRIDE_CONFIG='{"endpoint_url": "http://x"}') != there
    with pytest.raises(ConfigError, match="could not fetch it: RuntimeError: no such bucket"):
        get("s3://b/bad")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the words of a process from /proc")
def test_an_address_that_is_signed_is_no_word_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kserve_storage.py").write_text(
        textwrap.dedent("""
            import pathlib
            class Storage:
                @staticmethod
                def download(uri, folder):
                    pathlib.Path(folder, "words").write_bytes(pathlib.Path("/proc/self/cmdline").read_bytes())
                    pathlib.Path(folder, "uri").write_text(uri)
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    uri = "https://a.blob.core.windows.net/c/m?sig=hunter22"
    there = fetch(uri, base=tmp_path, cache=tmp_path / "cache", mounts={}, settings={})
    assert (there / "uri").read_text() == uri
    assert b"hunter22" not in (there / "words").read_bytes()
