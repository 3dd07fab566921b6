"""A class whose constructor takes what only `--extra` fills."""

from __future__ import annotations

from serinus import Model, ModelSettings


class Named(Model):
    """A model with an argument of its own."""

    def __init__(self, settings: ModelSettings, model_dir: str = "", colour: str = "red") -> None:
        super().__init__(settings)
        self.colour, self.model_dir = colour, model_dir
