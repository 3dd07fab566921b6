"""Other people's model classes as `Model`, and `Model` as theirs."""

from __future__ import annotations

from ..loading.directory import folder_name, settings_from_directory
from .factory import as_kserve, build_model, build_model_of
from ..loading.model_formats import infer_implementation
from .implementations import is_script
from .kserve.scripts import settings_from_script

__all__ = [
    "as_kserve",
    "build_model",
    "build_model_of",
    "folder_name",
    "infer_implementation",
    "is_script",
    "settings_from_directory",
    "settings_from_script",
]
