"""The wheel of serinus that goes into an image: a file that is named, or the installed package, packed again.

No index has to have the package: what runs here is what the image gets. An installed distribution lists its files (`RECORD`, Python
Packaging User Guide, "Recording installed projects"), and a wheel is these files in an archive.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Final

from ..errors import ConfigError

__all__ = ["choose_wheel"]

_NAME: Final = re.compile(r"serinus-[^-]+(?:-\d[^-]*)?-[^-]+-[^-]+-(?P<platform>[^-]+)\.whl")
_LEFT_OUT: Final = frozenset({"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json"})
"""What an installer writes beside a wheel's own files."""
_MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""An engine's word for a machine, and a wheel's."""


def choose_wheel(given: Path | None, folder: Path, architecture: str) -> Path:
    """Find or make the wheel for an image.

    Args:
        given: a wheel file of serinus; None: the installed package is packed.
        folder: where a packed one is written.
        architecture: of the engine's machine, in Docker's words (`amd64`, `arm64`); empty: not known.

    Raises:
        ConfigError: the file is no wheel of serinus, it is for another platform, or the package here is installed in place.
    """
    wheel = given if given is not None else _pack(folder)
    found = _NAME.fullmatch(wheel.name)
    if found is None or not wheel.is_file():
        raise ConfigError(
            f"--wheel {wheel}: not a wheel of serinus, such as dist/serinus-0.1.0-py3-none-any.whl of `make wheel`"
        )
    machine = _MACHINES.get(architecture, architecture)
    platforms = found["platform"].split(".")
    if "any" not in platforms and not any("linux" in each and each.endswith(machine) for each in platforms):
        raise ConfigError(
            f"{wheel.name} is for {found['platform']}, and the image is for Linux on {machine}: name another with --wheel "
            "(`make wheel` writes one for x86_64 and one for aarch64), or an image that has serinus with --base"
        )
    return wheel


def _pack(folder: Path) -> Path:
    """Write the wheel of the installed package."""
    installed = metadata.distribution("serinus")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        raise ConfigError(
            "serinus is installed in place, from its source tree, so there is no package to put into an image: name its wheel "
            f"(make wheel; --wheel dist/serinus-{installed.version}-...whl), or an image that has serinus (--base serinus_base:{installed.version})"
        )
    tags = re.findall(r"^Tag: ([^-\s]+)-([^-\s]+)-(\S+)$", installed.read_text("WHEEL") or "", re.MULTILINE)
    if not tags or not installed.files:
        raise ConfigError("the installed serinus does not list its files: name its wheel with --wheel")
    python, abi, _ = tags[0]
    wheel = folder / f"serinus-{installed.version}-{python}-{abi}-{'.'.join(tag[2] for tag in tags)}.whl"
    folder.mkdir(parents=True, exist_ok=True)
    record: list[str] = []
    information = ""
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(installed.files):
            if path.parts[0] == ".." or path.suffix == ".pyc" or "__pycache__" in path.parts or path.name in _LEFT_OUT:
                continue
            content = Path(str(path.locate())).read_bytes()
            archive.writestr(zipfile.ZipInfo(path.as_posix(), (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{path.as_posix()},sha256={digest},{len(content)}")
            if path.parts[0].endswith(".dist-info"):
                information = path.parts[0]
        archive.writestr(f"{information}/RECORD", "\n".join([*record, f"{information}/RECORD,,", ""]))
    return wheel
