"""Names that are imported when a test first uses them, so that collecting the tests imports no framework.

TensorFlow takes nine seconds of CPU to import, PyTorch and KServe three each, and every process of a test run collects every test.
`torch = Deferred("torch")` stands where `import torch` would, `Model = Deferred("kserve", "Model")` where `from kserve import Model`
would. What has one as its base class imports it: such classes have a module of their own in this folder, itself deferred.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Deferred"]

_ASKED_BY_PYTEST = frozenset({"__bases__", "__test__", "__wrapped__", "_mock_name", "_is_coroutine_mark"})
"""Attributes by which pytest tells tests and fixtures among the globals of a module; what is deferred is neither."""


class Deferred:
    """A module, or a name in one, imported when it is first called, asked for an attribute or asked for its instances.

    It is not the object itself: `pytest.raises`, `is` and `issubclass` want that, so give them an attribute of a deferred module.
    """

    def __init__(self, module: str, name: str | None = None) -> None:
        vars(self).update(_module=module, _name=name)

    def _resolve(self) -> Any:
        module = importlib.import_module(self._module)
        return module if self._name is None else getattr(module, self._name)

    def __getattr__(self, name: str) -> Any:
        if name in _ASKED_BY_PYTEST:
            raise AttributeError(name)
        return getattr(self._resolve(), name)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(
            f"{self!r} is not the object itself; replace its {name} by monkeypatch.setattr('{self._module}...{name}', ...)"
        )

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._resolve()(*arguments, **named)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[Any, ...]:
        return (self._resolve(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._resolve())

    def __repr__(self) -> str:
        return f"<deferred {self._module}{f'.{self._name}' if self._name else ''}>"
