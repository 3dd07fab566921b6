"""Packages that a process of a test is to find absent, as it does in the image or environment that it stands for.

Frameworks import what they find beside them (TensorFlow's Keras: scikit-learn and matplotlib; XGBoost, LightGBM: scikit-learn and pandas; skops:
PyTorch), and the tests' environment has it all: up to two seconds of CPU for each process, none of which an image of ours pays.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["BESIDE_BOOSTERS", "BESIDE_SKOPS", "BESIDE_TENSORFLOW", "without"]

BESIDE_TENSORFLOW = ("matplotlib", "pandas", "sklearn")
BESIDE_BOOSTERS = ("pandas", "sklearn")
BESIDE_SKOPS = ("torch",)


def without(folder: Path, *names: str) -> dict[str, str]:
    """Variables of a process that does not find these packages.

    Args:
        folder: gets a folder `absent-packages`, which stands first on the process's path.
        names: of top packages. To import one raises what it raises where it is not installed; to look for it with
            importlib.util.find_spec finds it.
    """
    absent = folder / "absent-packages"
    absent.mkdir(parents=True, exist_ok=True)
    for name in names:
        text = f"No module named {name!r}"
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError({text!r}, name={name!r})\n")
    return {"PYTHONPATH": str(absent)}
