"""Kustomizations of the repository, and overlays as a team writes them, rendered by the real kubectl."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

__all__ = ["COMPONENTS", "FOLDERS", "RENDERED", "ROOT", "Loader", "dump", "overlay", "relative", "render", "runtimes"]

ROOT = Path(__file__).resolve().parents[2]
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
KUBECTL = Path(sys.executable).with_name("kubectl")
FOLDERS = sorted(
    file.parent.relative_to(ROOT)
    for top in ("manifests", "inferenceservices")
    for file in (ROOT / top).rglob("kustomization.yaml")
)
COMPONENTS = [folder for folder in FOLDERS if "kind: Component" in (ROOT / folder / "kustomization.yaml").read_text()]
RENDERED = [folder for folder in FOLDERS if folder not in COMPONENTS]


@functools.cache
def render(folder: Path) -> list[dict[str, Any]]:
    """What kubectl makes of a folder; to be read and not changed, since each is rendered once."""
    done = subprocess.run([str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, Loader) if document]


def dump(documents: list[dict[str, Any]]) -> str:
    """Write documents as YAML again."""
    return yaml.dump_all(documents, Dumper=Dumper)


def runtimes(folder: Path) -> list[dict[str, Any]]:
    return [document for document in render(folder) if document["kind"] == "ClusterServingRuntime"]


def overlay(tmp_path: Path, *components: str) -> Path:
    """Write an overlay of the base with these components, as a team would; kustomize wants relative paths."""
    folder = tmp_path / "manifests" / "overlays" / "mine"
    folder.mkdir(parents=True)
    lines = [
        "apiVersion: kustomize.config.k8s.io/v1beta1",
        "kind: Kustomization",
        "resources:",
        f"  - {relative(folder, 'base')}",
    ]
    lines += ["components:", *(f"  - {relative(folder, f'components/{name}')}" for name in components)]
    (folder / "kustomization.yaml").write_text("\n".join(lines) + "\n")
    return folder


def relative(folder: Path, name: str) -> str:
    return os.path.relpath((ROOT / "manifests" / name).resolve(), folder.resolve())
