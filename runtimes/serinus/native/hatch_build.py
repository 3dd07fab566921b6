"""Build hook: a wheel carries the compiled kernels and the tag of its platform; an editable install gets them in place.

Where they cannot be compiled the wheel is one without them (`py3-none-any`), with a warning: everything works, and is slower.

Environment variables:
    SERINUS_REQUIRE_KERNELS: 1: no wheel without kernels; what stops the compiler stops the build.
    SERINUS_PURE: 1: a wheel without kernels.
    SERINUS_WHEEL_MACHINE: x86_64 or aarch64: a manylinux2014 wheel for it, compiled by ziglang wherever this runs; implies
        SERINUS_REQUIRE_KERNELS.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_HERE = Path(__file__).resolve().parent
_ZIG = "ziglang>=0.13"
_ZIG_MACHINES = frozenset({"x86_64", "amd64", "aarch64", "arm64"})
"""Where ziglang is asked for: an index without a wheel of it for some other machine would fail the whole installation."""


def _builder() -> ModuleType:
    """Load build.py by path: the package that it belongs to is not installed yet."""
    spec = importlib.util.spec_from_file_location("_serinus_native_build", _HERE / "build.py")
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{_HERE / 'build.py'} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class KernelsHook(BuildHookInterface):
    """Compile the kernels when a wheel is built; see the module for the variables that it reads."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def _is_pure(self) -> bool:
        return self.target_name != "wheel" or os.environ.get("SERINUS_PURE") == "1"

    def dependencies(self) -> list[str]:
        """Ask for ziglang where it compiles for another machine, or the system has no C compiler."""
        if self._is_pure():
            return []
        if os.environ.get("SERINUS_WHEEL_MACHINE"):
            return [_ZIG]
        names = (os.environ.get("CC", "").split() or ["cc"])[0], "cc", "gcc", "clang"
        if any(shutil.which(name) for name in names) or platform.machine().lower() not in _ZIG_MACHINES:
            return []
        return [_ZIG]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, then name the library and the wheel's platform.

        Raises:
            RuntimeError: the kernels cannot be compiled and are required, or SERINUS_WHEEL_MACHINE names no known machine.
        """
        if self._is_pure():
            return
        machine = os.environ.get("SERINUS_WHEEL_MACHINE") or None
        builder = _builder()
        if machine is not None and machine not in builder.PLATFORM_TAGS:
            known = ", ".join(builder.PLATFORM_TAGS)
            raise RuntimeError(f"SERINUS_WHEEL_MACHINE={machine}: expected one of {known}")
        in_place = _HERE / "_kernels.so"
        if version == "editable":
            library = in_place
        else:  # not in the source tree, whose own library may be for another machine
            self._folder = tempfile.TemporaryDirectory()
            library = Path(self._folder.name) / "_kernels.so"
        try:
            builder.build(library, machine=machine)
        except builder.BuildError as error:
            if machine is not None or os.environ.get("SERINUS_REQUIRE_KERNELS") == "1":
                raise
            if version == "editable":
                in_place.unlink(missing_ok=True)  # an older one would serve in its place
            self._warn(str(error))
            return
        if version == "editable":
            return
        build_data["force_include"][str(library)] = "serinus/native/_kernels.so"
        own = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{own if machine is None else builder.PLATFORM_TAGS[machine]}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled, now that the wheel has it."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _warn(self, reason: str) -> None:
        text = (
            "serinus: building a wheel WITHOUT compiled kernels: decoding and tree models will be several times slower. "
            "SERINUS_REQUIRE_KERNELS=1 makes this an error. The reason: "
        )
        self.app.display_warning(text + reason)
        sys.stderr.flush()
