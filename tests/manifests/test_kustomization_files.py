"""Which files a kustomization is made of: what it names, its bases and components included, and nothing that is not a file of this machine."""

from __future__ import annotations

import os
from pathlib import Path

from serinus.manifests.kustomization import _sources, kustomization_files


def write(folder: Path, name: str, text: str = "") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path.resolve()


def test_a_folder_without_a_kustomization_is_made_of_nothing(tmp_path: Path):
    write(tmp_path, "a.yaml")
    assert list(kustomization_files(tmp_path)) == []


def test_all_that_is_named_is_found_once_whichever_way_it_is_named(tmp_path: Path):
    top = write(
        tmp_path,
        "kustomization.yaml",
        "resources: [a.yaml, base, https://example.org/x.yaml, missing.yaml, pipe]\n"
        "bases: [base]\n"
        "components: [part]\n"
        "patches:\n"
        "- path: patch.yaml\n"
        "- patch: |-\n    kind: Service\n"
        "- {target: {kind: Service}}\n"
        "patchesStrategicMerge:\n- merge.yaml\n- |-\n  kind: Deployment\n  metadata: {name: a}\n"
        "images: [{name: other.yaml}]\n",
    )
    os.mkfifo(tmp_path / "pipe")
    files = [write(tmp_path, name) for name in ("a.yaml", "patch.yaml", "merge.yaml")]
    write(tmp_path, "other.yaml")
    base = write(tmp_path, "base/kustomization.yml", "resources: [../base, deep.yaml, ..]\n")
    part = write(tmp_path, "part/Kustomization", "resources: [own.yaml]\n")
    inner = [write(tmp_path, name) for name in ("base/deep.yaml", "part/own.yaml")]
    found = list(kustomization_files(tmp_path))
    assert found[0] == top
    assert sorted(found) == sorted([top, base, part, *files, *inner])


def test_objects_are_read_of_all_files_but_kustomizations_and_lists_of_operations_are_none(tmp_path: Path):
    write(tmp_path, "kustomization.yaml", "resources: [a.yaml]\npatches: [{path: patch.yaml}]\n")
    write(tmp_path, "a.yaml", "kind: A\n---\nkind: B\n")
    write(tmp_path, "patch.yaml", "- {op: remove, path: /spec}\n")
    assert [document.kind for document in _sources(tmp_path)] == ["A", "B"]
