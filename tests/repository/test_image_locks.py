"""The images' locks, layers and the Makefile say what pyproject.toml says."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from image_support import ROOT, make_variable
from representative import every

IMAGES = ROOT / "runtimes" / "images"


def _program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"images_{name}", IMAGES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


locks = _program("locks")
LAYERS = locks.layers()
ALL = sorted(LAYERS)


def lock(name: str) -> dict[str, str]:
    """A lock's packages and versions, those that are by version alone too."""
    files = [IMAGES / "locks" / f"{name}.txt", IMAGES / "locks" / f"{name}-by-version.txt"]
    lines = [line for file in files if file.is_file() for line in file.read_text().splitlines()]
    return dict(re.match(r"([a-z0-9.-]+)==(\S+)", line).groups() for line in lines if re.match(r"[a-z0-9]", line))  # type: ignore[union-attr,misc] # matched


def here(requirement: Requirement, extra: str = "") -> bool:
    """Whether a requirement is asked for in an image."""
    images = {"sys_platform": "linux", "python_version": locks.python(), "python_full_version": f"{locks.python()}.0"}
    return requirement.marker is None or requirement.marker.evaluate({**images, "extra": extra})


@functools.cache
def pins() -> dict[str, str]:
    """The versions of constraints.txt, in an image."""
    wanted = map(Requirement, (ROOT / "constraints.txt").read_text().split("\n")[:-1])
    return {locks.normalise(each.name): str(each.specifier) for each in wanted if here(each)}


@pytest.mark.parametrize("name", ALL)
def test_a_lock_has_what_its_layer_asks_for(name: str):
    held = lock(name)
    for line in locks.wanted(LAYERS[name]):
        asked = Requirement(line)
        if here(asked):
            assert asked.specifier.contains(held[locks.normalise(asked.name)], prereleases=True), line


@pytest.mark.parametrize("name", ALL)
def test_every_package_of_a_lock_has_hashes_but_those_that_are_by_version(name: str):
    text = (IMAGES / "locks" / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert entries
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]
    assert "://" not in text
    by_version = IMAGES / "locks" / f"{name}-by-version.txt"
    assert by_version.is_file() is bool(LAYERS[name].get("unhashed"))


@pytest.mark.parametrize("name", ALL)
def test_a_lock_has_the_versions_of_the_constraints(name: str):
    pinned = pins()
    for package, version in lock(name).items():
        if package in pinned:
            assert SpecifierSet(pinned[package]).contains(version, prereleases=True), package


def test_layers_that_meet_in_an_image_have_the_same_versions():
    seen: dict[str, dict[str, str]] = {}
    for name in ALL:
        if name not in ("build", "inventory"):
            for package, version in lock(name).items():
                seen.setdefault(package, {})[name] = version
    assert {package: found for package, found in seen.items() if len(set(found.values())) > 1} == {}


@pytest.mark.parametrize("name", [name for name in ALL if LAYERS[name].get("without")])
def test_what_a_layer_leaves_out_is_not_in_its_lock(name: str):
    assert not set(LAYERS[name]["without"]) & lock(name).keys()


SHARED = {
    locks.name_of(line): name for name, layer in LAYERS.items() if layer.get("shared") for line in layer["requires"]
}
"""Packages that are a layer of their own below those of frameworks, and that layer's name."""


def test_a_layer_can_be_asked_for_beside_those_of_an_image():
    command = ["make", "-n", "image/xgboost_server", "WITH=model_signing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--build-arg xgboost=xgboost --build-arg model_signing=model_signing" in done.stdout


def test_what_several_layers_of_an_image_would_bring_is_a_layer_below_them():
    """But for packages of a few files."""
    small = {
        "certifi",
        "cffi",
        "charset-normalizer",
        "idna",
        "joblib",
        "pycparser",
        "pyasn1",
        "requests",
        "six",
        "urllib3",
    }
    small |= {"python-dateutil", "pytz", "tzdata", "packaging", "threadpoolctl", "narwhals", "cloudpickle"}
    base = lock("base").keys()
    for image in make_variable("IMAGES"):
        seen: dict[str, str] = dict(SHARED)
        for layer in make_variable(f"call layers_of,{image}"):
            for package in lock(layer).keys() - base - small - SHARED.keys():
                assert package not in seen, f"{image}: {package} is of {seen[package]} and of {layer}"
                seen[package] = layer


@pytest.mark.parametrize("image", every(3, [*make_variable("IMAGES"), *make_variable("GPU_IMAGES")]))
def test_an_image_has_the_layers_of_its_extras(image: str):
    """`make -n image/NAME` names a layer for each requirement of the folders' extras, and no other."""
    done = subprocess.run(["make", "-n", f"image/{image}"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = {match[2] for match in re.finditer(r"--build-arg ([a-z_]+)=([a-z_-]+)", done.stdout)}
    words = image.split("-")
    variant = next((word for word in words if word in ("gpu", "trees")), "")
    folders = [word for word in words if word not in ("gpu", "trees", "serinus_base")]
    known = {locks.normalise(name) for name in locks.project()["optional-dependencies"]}
    extras = [f"{name}_{variant}" if locks.normalise(f"{name}_{variant}") in known else name for name in folders]
    asked = {locks.name_of(line) for line in locks.requirements(extras)}
    own = {layer for layer in named if not LAYERS[layer].get("shared")}
    assert {locks.name_of(line) for layer in own for line in LAYERS[layer]["requires"]} == asked
    below = {package for layer in own for package in lock(layer)} & SHARED.keys()
    assert {SHARED[package] for package in below} == named - own, (
        "what several layers would bring is a layer below them"
    )
    assert ("--target serinus_base" in done.stdout) is (image == "serinus_base")


@pytest.mark.parametrize("name", ALL)
def test_a_lock_is_for_the_python_of_the_dockerfile(name: str):
    first = (IMAGES / "locks" / f"{name}.txt").read_text().splitlines()[0]
    assert first == f"# Written by `make locks`, for Python {locks.python()}."


def test_every_layer_has_its_stage_in_the_order_of_the_makefile():
    text = (ROOT / "runtimes" / "Dockerfile").read_text()
    assert re.findall(r"COPY --from=(\w+) --chown=1000:1000 /opt/layer/", text) == [*make_variable("LAYERS"), "package"]
    assert {name.removesuffix("-gpu") for name in ALL} == {*make_variable("LAYERS"), "base", "build", "inventory"}


AUTHORS = """
import sys
left_out = sys.argv[1].split(",")
class LeftOut:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in left_out or any(name == each or name.startswith(each + ".") for each in left_out):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, LeftOut())
import kserve
from kserve import (InferInput, InferOutput, InferRequest, InferResponse, InferenceGRPCClient, InferenceRESTClient, KServeClient, Model,
    ModelRepository, ModelServer, PredictorConfig, RESTConfig, V1beta1InferenceService, V1alpha1ServingRuntime, constants, logging, model_server)
from kserve.errors import InferenceError, InvalidInput, ModelMissingError, ModelNotFound, ModelNotReady
from kserve.model import BaseKServeModel, InferenceModel, InferenceVerb, PredictorProtocol
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.infer_type import RequestedOutput, to_http_parameters
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from kserve.utils.utils import generate_uuid, get_predict_input, get_predict_response, is_structured_cloudevent
import pandas
class Own(Model):
    def predict(self, payload, headers=None):
        return get_predict_response(payload, get_predict_input(payload).sum(axis=1), self.name)
frame = pandas.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
request = InferRequest("own", [InferInput("x", [2, 2], "FP32", [[1.0, 3.0], [2.0, 4.0]])])
print(Own("own").predict(request).outputs[0].data)
"""


@pytest.mark.slow
def test_all_that_authors_use_of_kserve_works_without_what_its_layer_leaves_out():
    """In a process that cannot import what its file leaves out: packages and the folders that it removes."""
    pytest.importorskip("kserve")
    imported = {"pyjwt": "jwt", "pillow": "PIL", "grpcio-tools": "grpc_tools", "aiohttp-retry": "aiohttp_retry"}
    names = [imported.get(name, name) for name in LAYERS["kserve"]["without"]]
    folders = [path.replace("/", ".") for path in LAYERS["kserve"]["remove"]]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AUTHORS, ",".join([*names, *folders])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4" in done.stdout


def test_nothing_of_this_machine_or_of_an_index_is_in_what_builds_images():
    found = [
        path for path in (*IMAGES.rglob("*"), ROOT / "runtimes" / "Dockerfile", ROOT / "Makefile") if path.is_file()
    ]
    for path in found:
        if path.suffix != ".pyc":
            assert not re.search(r"\b(https?|file)://\w", path.read_text()), path
