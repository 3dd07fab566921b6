"""Check what is in an image and list it: run while an image is built (runtimes/Dockerfile), by no one else.

    inventory.py /usr/share/serinus xgboost_server fraud_features     # the extras that the image is for

Writes `sbom.json` (CycloneDX 1.6: Python's packages by cyclonedx-py, the system's by dpkg) and `licences.txt` (a line a package).
Ends with a message where a requirement of an extra is not in the image, or CUDA's libraries are in one for CPUs.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ENVIRONMENT = Path("/opt/serinus")
LOAD = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; from serinus.native import library; sys.exit(library() is None)"
DPKG_STATUS = Path("/var/lib/dpkg/status")


def installed() -> dict[str, importlib.metadata.Distribution]:
    """The environment's packages by their normalised names."""
    (site,) = ENVIRONMENT.glob("lib/python3.*/site-packages")
    found = importlib.metadata.distributions(path=[str(site)])
    return {normalise(each.metadata["Name"]): each for each in found}


def normalise(name: str) -> str:
    """Write the name of a package as all others write it (PyPA, Names and normalization)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(extras: list[str], packages: dict[str, importlib.metadata.Distribution]) -> Iterator[str]:
    """What serinus's requirements, with these extras, ask for and the environment lacks."""
    for line in packages["serinus"].requires or []:
        asked = Requirement(line)
        here = asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in ["", *extras])
        if not here or (asked.name == "serinus" and not asked.extras):
            continue
        if asked.name == "serinus":
            yield from missing(sorted(asked.extras), packages)
            continue
        there = packages.get(normalise(asked.name))
        if there is None or not asked.specifier.contains(there.version, prereleases=True):
            yield f"{asked.name}{asked.specifier} (there is {there.version if there else 'none'})"


def system_components() -> list[dict[str, Any]]:
    """Debian's packages as components of a CycloneDX document, those too of which a layer has one library; none on a system without dpkg."""
    found = {}
    for file in [DPKG_STATUS, *sorted(ENVIRONMENT.glob("share/dpkg/*"))]:
        for paragraph in file.read_text().split("\n\n") if file.is_file() else ():
            fields = dict(re.findall(r"^(Package|Version|Architecture|Status): (.*)$", paragraph, re.MULTILINE))
            if fields.get("Status", "").endswith(" installed"):
                name, version = fields["Package"], fields["Version"]
                purl = f"pkg:deb/debian/{name}@{version}?arch={fields['Architecture']}"
                found[purl] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return list(found.values())


def licence_of(component: dict[str, Any], packages: dict[str, importlib.metadata.Distribution]) -> str:
    """A component's licences in one line: as the document has them, or else as the package says."""
    names: set[str] = set()
    for entry in component.get("licenses", []):
        licence = entry.get("license", {})
        names.add(entry.get("expression") or licence.get("id") or licence.get("name") or "")
    if not names - {""}:
        names = {str(packages[normalise(component["name"])].metadata.json.get("license") or "")}
    lines = {name.rpartition(" :: ")[2].strip().partition("\n")[0][:80] for name in names}
    return (
        " AND ".join(sorted(lines - {""}))
        or title_of_licence(packages[normalise(component["name"])])
        or "see the package"
    )


def title_of_licence(package: importlib.metadata.Distribution) -> str:
    """The first line of a package's licence that names one: all that a package says which declares none. Empty where it has no such file."""
    for file in package.files or ():
        if re.search(r"\.dist-info/(licenses/)?(LICEN[CS]E|COPYING)[^/]*$", str(file), re.IGNORECASE):
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            named = [line for line in lines if re.search(r"\blicen[cs]e\b", line, re.IGNORECASE)]
            return next(iter(named + lines), "")[:80]
    return ""


def main(folder: Path, extras: list[str]) -> None:
    """Check, then write both files.

    Raises:
        SystemExit: the image lacks something, or has what it should not have.
    """
    packages = installed()
    if lacks := sorted(set(missing(extras, packages))):
        flags = "name each as a layer, as `make image/NAME` does: --build-arg torch=torch"
        raise SystemExit(f"{', '.join(extras)}: not in this image: {', '.join(lacks)}; {flags}")
    nvidia = sorted(name for name in packages if name.startswith("nvidia-"))
    if nvidia and not any(extra.endswith("_gpu") for extra in extras):
        raise SystemExit(f"CUDA's libraries are in an image for CPUs: {', '.join(nvidia)}")
    python = str(ENVIRONMENT / "bin" / "python")
    folders = [name for extra in extras if (name := extra.removesuffix("_gpu").removesuffix("_trees"))]
    if subprocess.run([python, "-c", LOAD, *folders], check=False).returncode:
        raise SystemExit(f"{', '.join(folders)}: not importable in this image, or serinus's kernels are missing")
    made = subprocess.run(
        [
            str(Path(sys.executable).with_name("cyclonedx-py")),
            "environment",
            "--output-reproducible",
            "--sv",
            "1.6",
            python,
        ],
        check=True,
        stdout=subprocess.PIPE,
    )
    document = json.loads(made.stdout)
    components = document.setdefault("components", [])
    lines = [f"{each['name']} {each['version']}: {licence_of(each, packages)}" for each in components]
    components += system_components()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sbom.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    head = "Python's packages in this image and their licences, from sbom.json; the system's: /usr/share/doc/*/copyright.\n\n"
    (folder / "licences.txt").write_text(head + "\n".join(sorted(lines, key=str.lower)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
