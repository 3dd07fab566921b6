"""manifests/README.md names every overlay, component and file of monitoring, and says of overlays what they render."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kustomize_support import render

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "manifests"
PAGE = (FOLDER / "README.md").read_text()
OVERLAYS = ("local", "staging", "production", "production-gpu")


def named() -> set[str]:
    """Paths in the page's tables, a list of siblings written out: `components/gpu-gke`, `gpu-eks`."""
    found: set[str] = set()
    for line in PAGE.splitlines():
        cells = re.findall(r"`([\w./-]+)`", line.split("|")[1]) if line.startswith("|") else []
        cells += re.findall(r"`((?:overlays|base)[\w/-]*)`", line)
        folder = ""
        for cell in cells:
            folder = cell.rpartition("/")[0] or folder
            found.add(cell if "/" in cell or (FOLDER / cell).exists() else f"{folder}/{cell}")
    return found


def test_every_overlay_component_and_part_of_the_monitoring_is_named():
    shipped = {
        f"{kind}/{path.name}" for kind in ("overlays", "components", "monitoring") for path in (FOLDER / kind).iterdir()
    }
    assert {path for path in shipped if not path.startswith("monitoring/__")} - named() == set()


def test_whatever_is_named_is_there():
    assert [path for path in sorted(named()) if not (FOLDER / path).exists()] == []


def test_every_link_leads_somewhere():
    links = set(re.findall(r"\]\((?!https?:)([^)#]+)", PAGE))
    assert links
    assert [link for link in sorted(links) if not (FOLDER / link).exists()] == []


def row(name: str) -> dict[str, bool]:
    """A row of the table of overlays with `yes` in some columns."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
    assert set(cells) <= {"yes", ""}
    return dict(zip(OVERLAYS, (cell == "yes" for cell in cells), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_what_the_table_says_of_it(overlay: str):
    documents = render(FOLDER / "overlays" / overlay)
    kinds = {document["kind"] for document in documents}
    assert ("NetworkPolicy" in kinds) == row("network policy")[overlay]
    assert ("PodMonitor" in kinds) == row("metrics and dashboards")[overlay]
    alerts = [
        rule
        for document in documents
        if document["kind"] == "PrometheusRule"
        for group in document["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert bool(alerts) == row("alerts")[overlay]
    assert "Namespace" in kinds
    asked = {
        quantity
        for document in documents
        if document["kind"] == "ClusterServingRuntime" and document["metadata"]["name"] == "serinus-xgboost-server"
        for quantity in document["spec"]["containers"][0]["resources"]["requests"].values()
    }
    (line,) = [line for line in PAGE.splitlines() if line.startswith("| trees: requests")]
    cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
    assert asked == set(dict(zip(OVERLAYS, cells, strict=True))[overlay].split(", "))
