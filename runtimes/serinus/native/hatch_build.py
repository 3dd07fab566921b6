"""Build hook: a wheel carries the compiled kernels and the tag of its platform; an editable install gets them in place."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_HERE = Path(__file__).resolve().parent


def _builder() -> ModuleType:
    """Load build.py by path: the package that it belongs to is not installed yet."""
    spec = importlib.util.spec_from_file_location("_serinus_native_build", _HERE / "build.py")
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{_HERE / 'build.py'} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class KernelsHook(BuildHookInterface):
    """Compile the kernels when a wheel is built, unless SERINUS_PURE=1 asks for a wheel without them."""

    def dependencies(self) -> list[str]:
        """Ask for ziglang only where the system has no C compiler."""
        if self.target_name != "wheel" or os.environ.get("SERINUS_PURE") == "1":
            return []
        names = (os.environ.get("CC", "").split() or ["cc"])[0], "cc", "gcc", "clang"
        return [] if any(shutil.which(name) for name in names) else ["ziglang>=0.13"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, then name the library as an artifact and the wheel's platform."""
        if self.target_name != "wheel" or os.environ.get("SERINUS_PURE") == "1":
            return
        _builder().build()
        build_data["artifacts"].append("runtimes/serinus/native/_kernels.so")
        if version != "editable":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
