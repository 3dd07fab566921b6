"""What is to be served: model directories, formats, versions, and how classes are constructed."""

from __future__ import annotations

from .directory import folder_name, settings_from_directory
from .model_formats import infer_implementation, installed

__all__ = ["folder_name", "infer_implementation", "installed", "settings_from_directory"]
