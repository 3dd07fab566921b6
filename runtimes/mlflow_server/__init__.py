"""MLflow's model folders (`MLmodel`), each flavour by its own runtime where there is one, else as a pyfunc in a process."""

from __future__ import annotations

from .model import MlflowModel

__all__ = ["MlflowModel"]

__serinus_class__ = "mlflow_server.model:MlflowModel"
