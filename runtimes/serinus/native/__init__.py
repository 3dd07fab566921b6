"""Compiled kernels: JSON numbers into arrays, tree ensembles walked over flat arrays, small dense networks, gRPC's bytes moved without the GIL.

Theory of operation. The kernels are plain C without Python's headers, one shared library called through ctypes, so that one
build serves every Python version and a wheel needs no compiler where it is installed. `build.py` compiles `*.c`
of this folder with the system's compiler, or with `ziglang` from PyPI where there is none; the wheel build and `make setup`
call it. Without the library everything works and is slower: callers ask `library()` and take their path in Python on None.
"""

from __future__ import annotations

from .kernel_library import library, library_path

__all__ = ["library", "library_path"]
