"""Install one layer of an image below a prefix: run while an image is built (runtimes/Dockerfile), by no one else.

    layer.py base /opt/serinus                 # the environment itself
    layer.py torch /opt/layer                  # what PyTorch adds to it; nothing for an empty name

By the layer's lock, with the hashes of every file; then removes what no server needs, debuggers' symbols among it, and compiles what a server imports
(its file in `layers/`), all in the same step, so that the layer has the size that it says.
"""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path

import tomllib
from symbols import remove_symbols

ENVIRONMENT = Path("/opt/serinus")
PIP = (
    "/opt/build/bin/pip",
    "--python",
    str(ENVIRONMENT / "bin" / "python"),
    "install",
    "-q",
    "--no-compile",
    "--no-deps",
)
PREFER_CPU = (
    "/opt/build/bin/uv",
    "pip",
    "install",
    "-q",
    "--no-cache",
    "--python",
    str(ENVIRONMENT / "bin" / "python"),
)
LIST_IMPORTED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({m.__file__ for m in list(sys.modules.values()) if (getattr(m, "__file__", None) or "").endswith(".py")}), sep="\\n")
"""


def site_packages(prefix: Path) -> Path:
    """The folder of packages below a prefix."""
    return prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def install(locks: Path, name: str, prefix: Path) -> None:
    """Install a lock's packages, but for those that the environment has."""
    into = () if prefix == ENVIRONMENT else ("--prefix", str(prefix))
    hashed = ("--require-hashes", "--only-binary", ":all:", "-r", str(locks / f"{name}.txt"))
    subprocess.run([*PIP, *into, *hashed], check=True)
    by_version = locks / f"{name}-by-version.txt"
    if by_version.is_file():
        lines = [line for line in by_version.read_text().split() if "==" in line]
        # Where pip's indexes or folders have a build for CPUs, that one; else the index of them that uv knows.
        cpu = [f"{line}+cpu" for line in lines]
        if subprocess.run([*PIP, *into, *cpu], check=False, stderr=subprocess.DEVNULL).returncode:
            subprocess.run([*PREFER_CPU, *into, "--no-deps", "--torch-backend", "cpu", *lines], check=True)


def remove(site: Path, patterns: list[str]) -> None:
    """Remove what patterns below the folder of packages match."""
    for pattern in patterns:
        for path in sorted(site.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()


def compile_imported(site: Path, imports: list[str]) -> None:
    """Compile the modules that these imports load: those of this layer, and those of layers below that are not compiled there.

    Raises:
        subprocess.CalledProcessError: one of them cannot be imported, which would be so in the image too.
    """
    python = str(ENVIRONMENT / "bin" / "python")
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    listed = subprocess.run(
        [python, "-c", LIST_IMPORTED, *imports], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    below = site_packages(ENVIRONMENT)
    for file in map(Path, listed.stdout.splitlines()):
        if file.is_relative_to(site) or (file.is_relative_to(below) and not Path(cache_from_source(file)).exists()):
            place = site / file.relative_to(site if file.is_relative_to(site) else below)
            py_compile.compile(str(file), cache_from_source(place), doraise=True, quiet=2)


def main(name: str, prefix: Path) -> None:
    """Make one layer."""
    here = Path(__file__).resolve().parent
    prefix.mkdir(parents=True, exist_ok=True)
    if not name:
        return
    layer = tomllib.loads((here / "layers" / f"{name}.toml").read_text())
    install(here / "locks", name, prefix)
    site = site_packages(prefix)
    remove(site, layer["remove"])
    for library in site.rglob("*.so*"):
        if library.is_file() and not library.is_symlink():
            remove_symbols(library)
    compile_imported(site, layer["imports"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 2 else "", Path(sys.argv[-1]))
