"""Stock `kserve.ModelServer` with a model of ours a folder, and a class of KServe's that streams, as a program: FOLDER and KServe's flags."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import kserve

from kserve_teller import Teller
from serinus.exports.kserve_model import as_kserve
from serinus.hosts import build_model
from serinus.loading import settings_from_directory

__all__: list[str] = []


def main() -> None:
    """Serve each folder's model by the folder's name, and `teller`."""
    models: list[kserve.Model] = [Teller("teller")]
    for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        (settings,) = settings_from_directory(folder)
        model = as_kserve(build_model(dataclasses.replace(settings, name=folder.name)))
        model.load()
        models.append(model)
    kserve.ModelServer().start(models)


if __name__ == "__main__":
    main()
