"""The table of images in runtimes/README.md: sizes, shared layers, start-up and memory, measured (`make image-table`).

    PYTHONPATH=tests/support python tests/images/measure.py [NAME ...]

Each image that `make images TAG=test` built runs its example of image_support with the rights of the manifests, without a CPU limit and with half
a CPU; memory is that of the second run, after one request.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path

from image_support import BASE, EXAMPLES, ROOT, TAG, build, docker, example, layer_sizes, request_of

README = ROOT / "runtimes" / "README.md"
BEGIN, END = "<!-- image-table -->\n", "<!-- /image-table -->\n"


def layers(name: str) -> list[tuple[str, int]]:
    """The layers of an image that hold files, from the system up, with their bytes."""
    digests = json.loads(docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", f"{name}:test"))
    return list(zip(digests, layer_sizes(f"{name}:test", len(digests)), strict=True))


def shared_with(name: str, others: list[str]) -> tuple[int, int]:
    """Bytes of layers over the system's that another image has too, and how many images have the most of them."""
    mine = layers(name)
    system = len(json.loads(docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", BASE)))
    counts = []
    for other in others:
        if other == name:
            continue
        same = 0
        for (one, _), (two, _) in zip(mine, layers(other), strict=False):
            if one != two:
                break
            same += 1
        counts.append(sum(size for _, size in mine[system:same]))
    most = max(counts)
    return most, counts.count(most)


def row(name: str, names: list[str], folder: Path) -> str:
    """Measure one image."""
    total = sum(size for _, size in layers(name)) - sum(
        layer_sizes(BASE, len(json.loads(docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", BASE))))
    )
    shared, _ = shared_with(name, names)
    load = os.getloadavg()[0]
    with example(name, folder, cpus=None) as free:
        ready_s = free.ready_s
    with example(name, folder, cpus=0.5) as bound:
        half_s = bound.ready_s
        bound.ask("/v2/models/model/infer", request_of(name, bound.ask("/v2/models/model")))
        memory = bound.resident_mib()
    return f"| `{name}` | {total / 1e6:.0f} MB | {shared / 1e6:.0f} MB | {ready_s:.1f} s | {half_s:.1f} s | {memory:.0f} MiB | {load:.0f} |"


def main(names: list[str]) -> None:
    """Measure these images, or all, and write the table; without the others' names their lines stay as they are."""
    chosen = names or list(EXAMPLES)
    for name in chosen:
        build(name)
    before, rest = README.read_text().split(BEGIN)
    table, after = rest.split(END)
    lines = {found[1]: found[0] for found in re.finditer(r"^\| `(\S+)` \|.*$", table, re.MULTILINE)}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            (Path(folder) / name).mkdir()
            lines[name] = row(
                name, [each for each in EXAMPLES if docker("images", "-q", f"{each}:{TAG}")], Path(folder) / name
            )
            print(lines[name], flush=True)
    rows = "".join(f"{lines[name]}\n" for name in EXAMPLES if name in lines)
    README.write_text(f"{before}{BEGIN}{HEAD}{rows}{END}{after}")


HEAD = """\
| image | size over the base | of it shared with another image | ready, no CPU limit | ready, 0.5 CPU | resident memory | load |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""

if __name__ == "__main__":
    main(sys.argv[1:])
