"""What is in the images: layers that they share, sizes, labels, an inventory, and nothing that should not be there."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import re
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from image_support import BASE, DOCKER, HARDENED, ROOT, TAG, build, docker, has_engine, layer_sizes, make_variable

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not has_engine(), reason="needs a Docker engine"),
]

IMAGES = make_variable("IMAGES")
each_image = pytest.mark.parametrize("name", IMAGES)


@functools.cache
def inspect(image: str) -> dict[str, Any]:
    return json.loads(docker("image", "inspect", image))[0]


def layers(name: str) -> list[str]:
    return inspect(build(name))["RootFS"]["Layers"]


def shared(one: str, other: str) -> int:
    """How many layers two images have in common, from the system up."""
    count = 0
    for mine, its in zip(layers(one), layers(other), strict=False):
        if mine != its:
            break
        count += 1
    return count


SYSTEM = 2
"""Layers of ours that every image has: the user and /app, what serinus needs."""


@each_image
def test_every_image_begins_with_the_layers_of_the_base(name: str):
    ours = len(inspect(BASE)["RootFS"]["Layers"])
    assert shared(name, "serinus_base") >= ours + SYSTEM
    assert layers(name)[:ours] == inspect(BASE)["RootFS"]["Layers"]


@pytest.mark.parametrize(
    ("one", "other", "size_mb"),
    [
        ("ensemble_server", "torch_server", 400),
        ("ensemble_server", "torch_server-recommender_features", 400),
        ("ensemble_server", "ensemble_server-fraud_features", 700),
        ("tensorflow_server", "tensorflow_server-image_pixels", 800),
        ("ensemble_server-trees", "xgboost_server", 200),
        ("sklearn_server", "catboost_server", 200),
        ("lightgbm_server", "xgboost_server", 180),
        ("mlflow_server", "classic_server", 600),
    ],
)
def test_images_share_the_layers_of_their_frameworks(one: str, other: str, size_mb: int):
    same = shared(one, other)
    system = len(inspect(BASE)["RootFS"]["Layers"])
    assert sum(layer_sizes(build(one), len(layers(one)))[system:same]) / 1e6 >= size_mb


@pytest.mark.parametrize(
    ("name", "limit_mb"),
    [
        ("ensemble_server", 850),
        ("ensemble_server-fraud_features", 850),
        ("ensemble_server-trees", 400),
        ("ensemble_server-trees-fraud_features", 400),
        ("xgboost_server", 400),
        ("sklearn_server", 350),
        ("catboost_server", 550),
        ("classic_server", 750),
        ("mlflow_server", 850),
        ("serinus_base", 200),
    ],
)
def test_an_image_is_no_larger_than_the_readme_says(name: str, limit_mb: int):
    assert (inspect(build(name))["Size"] - inspect(BASE)["Size"]) / 1e6 <= limit_mb


def test_a_change_of_our_source_makes_small_layers_alone(tmp_path_factory: pytest.TempPathFactory):
    """Builds a copy of the tree with one line more; all but the last layers come from the cache."""
    build("xgboost_server")
    copy = tmp_path_factory.mktemp("tree") / "copy"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wanted = [line for line in files.stdout.splitlines() if line.split("/")[0] in TREE and (ROOT / line).is_file()]
    for line in wanted:
        (copy / line).parent.mkdir(parents=True, exist_ok=True)
        (copy / line).write_bytes((ROOT / line).read_bytes())
        (copy / line).chmod((ROOT / line).stat().st_mode & 0o777)
    with (copy / "runtimes/xgboost_server/model.py").open("a") as file:
        file.write("# one line more\n")
    arguments = [
        "APP=xgboost_server",
        *(f"{layer}={layer}" for layer in make_variable("call layers_of,xgboost_server")),
    ]
    flags = [part for argument in arguments for part in ("--build-arg", argument)]
    docker("build", "-q", "-f", str(copy / "runtimes/Dockerfile"), *flags, "-t", "xgboost_server:changed", str(copy))
    try:
        before, after = layers("xgboost_server"), inspect("xgboost_server:changed")["RootFS"]["Layers"]
        assert len(before) == len(after)
        same = next(index for index, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)
        assert len(before) - same == 2  # serinus, and the list of what is in the image
        assert sum(layer_sizes("xgboost_server:changed", len(after))[same:]) < 15e6
    finally:
        docker("rmi", "xgboost_server:changed")


TREE = {"pyproject.toml", "constraints.txt", "README.md", ".dockerignore", "runtimes", "transformers"}


@each_image
def test_labels_say_what_it_is(name: str):
    labels = inspect(build(name))["Config"]["Labels"]
    label = {key.removeprefix("org.opencontainers.image."): value for key, value in labels.items()}
    assert label["title"] == name.replace("-trees", "")
    assert label["version"] == TAG
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", label["revision"])
    assert label["licenses"] == "Apache-2.0"
    assert re.fullmatch(r"|https://[^@]+", label["source"])


@each_image
def test_its_inventory_lists_its_packages_and_their_licences(name: str):
    def read(file: str) -> str:
        return docker("run", "--rm", "--entrypoint", "cat", build(name), f"/usr/share/serinus/{file}")

    document = json.loads(read("sbom.json"))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    python = [each for each in document["components"] if not each.get("purl", "").startswith("pkg:deb/")]
    listed = {each["name"].lower().replace("_", "-"): each["version"] for each in python}
    there = json.loads(docker("run", "--rm", "--entrypoint", "pip", build(name), "list", "--format", "json"))
    assert {each["name"].lower().replace("_", "-"): each["version"] for each in there} == listed
    system = {each["name"] for each in document["components"] if each.get("purl", "").startswith("pkg:deb/debian/")}
    assert "libc6" in system
    assert ("libgomp1" in system) == ("lightgbm" in make_variable(f"call layers_of,{name}"))
    licences = read("licences.txt")
    assert all(f"\n{package['name']} {package['version']}: ".lower() in licences.lower() for package in there)
    assert "see the package" not in licences


@each_image
def test_its_frameworks_can_be_imported_by_its_user_on_a_read_only_system(name: str):
    layers_of = make_variable(f"call layers_of,{name}")
    read = (ROOT / "runtimes" / "images" / "layers" / f"{layer}.toml" for layer in ["base", *layers_of])
    modules = [word for file in read for word in re.findall(r'"([^"]+)"', file.read_text().split("imports = [")[1])]
    code = "import importlib, sys; print(*(name for name in sys.argv[1:] if importlib.import_module(name)))"
    said = docker("run", "--rm", *HARDENED, "--entrypoint", "python", build(name), "-c", code, *modules)
    assert modules
    assert said.splitlines()[-1].split() == modules, said


@pytest.mark.parametrize("name", ["sklearn_server", "catboost_server", "classic_server", "mlflow_server"])
def test_a_file_of_its_packages_is_in_one_layer_alone(name: str):
    """What two layers hold is paid for twice. Files of a megabyte; not bytecode: a layer compiles what it needs of the layers below it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            f"{DOCKER} save {build(name)} | tar -x -C {folder}", shell=True, check=True, executable="/bin/bash"
        )  # a pipe of two programs of ours
        (manifest,) = json.loads((Path(folder) / "manifest.json").read_text())
        seen: dict[str, int] = {}
        for place, layer in enumerate(manifest["Layers"]):
            with tarfile.open(Path(folder) / layer) as archive:
                for member in archive:
                    is_package = "site-packages/" in member.name and not member.name.endswith(".pyc")
                    if member.isfile() and member.size > 1_000_000 and is_package:
                        assert member.name not in seen, f"{member.name}: in layers {seen[member.name]} and {place}"
                        seen[member.name] = place
    assert any(file.endswith(".so") for file in seen)


def test_catboosts_image_has_no_charts_and_no_notebooks_widget():
    packages = docker("run", "--rm", "--entrypoint", "pip", build("catboost_server"), "list", "--format", "freeze")
    names = {line.partition("==")[0].lower() for line in packages.splitlines()}
    assert "catboost" in names
    assert not names & {"matplotlib", "plotly", "graphviz", "pillow", "fonttools"}
    command = "find /opt/serinus/share /opt/serinus/etc /opt/serinus/lib -path '*/jupyter/*' -o -name hnsw; true"
    found = docker("run", "--rm", "--entrypoint", "sh", build("catboost_server"), "-c", command)
    assert found == ""


FIND = r"""
find / -xdev -type f -perm /6000
find / -xdev -perm -o+w ! -type l ! -type c ! -perm -1000
find / -xdev \( -name pip.conf -o -name .pypirc -o -name .netrc -o -name uv.toml -o -name '*.pem.key' -o -name 'id_rsa*' -o -name .git \)
find /root /tmp /home /src /build /opt -mindepth 1 -maxdepth 1 ! -name .bashrc ! -name .profile ! -name serinus 2>/dev/null
"""


@each_image
def test_nothing_has_anothers_rights_is_open_to_all_or_was_left_behind(name: str):
    """No setuid or setgid file, none that everybody may write, no configuration of an index, no tool or cache of the build."""
    script = f"({FIND}) 2>/dev/null | grep -v '^/proc\\|^/sys\\|^/dev' || true"
    found = docker("run", "--rm", "--user", "0", "--entrypoint", "sh", build(name), "-c", script)
    assert found == ""


@each_image
def test_no_index_or_secret_of_the_build_is_in_its_configuration(name: str):
    config = inspect(build(name))["Config"]
    outside = set(inspect(BASE)["Config"]["Env"] or ())
    ours = [line for line in config["Env"] if line not in outside]
    names = {line.split("=")[0] for line in ours}
    assert not {
        variable for variable in names if "INDEX" in variable or "FIND_LINKS" in variable or "TOKEN" in variable
    }
    assert config["User"] == "1000:1000"
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", build(name))
    assert not re.search(r"INDEX_URL=|FIND_LINKS=|https?://", history)


def test_an_index_with_a_password_leaves_no_trace_in_an_image_that_was_installed_from_it():
    """The index asks for the password and has no package, so pip goes on to the others; everything is installed afresh."""
    with index_with_password() as (port, users):
        index = f"PIP_EXTRA_INDEX_URL=http://user:{PASSWORD}@127.0.0.1:{port}/simple"
        arguments = ["APP=serinus_base", "redis=redis", index, *WHEELS]
        flags = [part for argument in arguments for part in ("--build-arg", argument)]
        command = [DOCKER, "build", "--network", "host", "-f", "runtimes/Dockerfile", *flags]
        done = subprocess.run(
            [*command, "--target", "serinus_base", "-t", "traces:test", "."],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    try:
        assert {f"/simple/{package}/" for package in ("numpy", "redis", "ziglang", "packaging")} <= users.keys()
        assert set(users.values()) == {f"user:{PASSWORD}"}
        assert PASSWORD not in done.stdout + done.stderr
        assert PASSWORD not in docker("history", "--no-trunc", "traces:test")
        assert docker("run", "--rm", "--entrypoint", "python", "traces:test", "-c", "import redis") == ""
        assert not has_bytes("traces:test", PASSWORD.encode())
        assert has_bytes("traces:test", b"SERINUS_CACHE_DIR=/tmp/serinus")  # what is looked through is the image
    finally:
        docker("rmi", "traces:test")


PASSWORD = "hunter2-of-the-index"
WHEELS = [f"PIP_FIND_LINKS={folder}"] if (folder := os.environ.get("IMAGES_FIND_LINKS")) else []


@contextlib.contextmanager
def index_with_password() -> Iterator[tuple[int, dict[str, str]]]:
    """A package index on loopback that has nothing; gives its port, and the user of each path that was asked for."""
    users: dict[str, str] = {}

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            scheme, _, word = self.headers.get("Authorization", "").partition(" ")
            users[self.path] = base64.b64decode(word).decode() if scheme == "Basic" else ""
            self.send_response(404 if users[self.path] else 401)
            self.send_header("WWW-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1], users
        finally:
            server.shutdown()
            thread.join()


def has_bytes(image: str, wanted: bytes) -> bool:
    """Whether they are anywhere in an image: the files of its layers, its configuration, its history."""
    with subprocess.Popen([DOCKER, "save", image], stdout=subprocess.PIPE) as saved:
        assert saved.stdout is not None
        found, tail = False, b""
        while part := saved.stdout.read(1 << 20):
            found = found or wanted in tail + part
            tail = part[-len(wanted) :]
    assert saved.returncode == 0
    return found


def test_a_build_without_a_layer_that_its_extra_needs_says_which():
    flags = ["-f", "runtimes/Dockerfile", "--build-arg", "APP=lightgbm_server"]
    done = subprocess.run([DOCKER, "build", *flags, "."], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "lightgbm_server: not in this image: lightgbm" in done.stdout + done.stderr
