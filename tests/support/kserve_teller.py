"""A script as KServe documents it, with a `kserve.Model` that streams its V1 answers."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import kserve


class Teller(kserve.Model):
    """Tells each instance as a line; before the instance "wait" it waits for a request of "go". Fails at "fail"."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.gate = asyncio.Semaphore(0)
        self.ready = True

    def load(self) -> bool:
        """Have nothing to load."""
        return True

    async def predict(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        """Answer V1 bodies of texts."""
        if payload["instances"] == ["go"]:
            self.gate.release()
            return {"predictions": ["gone"]}
        return self._lines(payload["instances"])

    async def _lines(self, texts: list[str]) -> AsyncIterator[str]:
        for text in texts:
            if text == "wait":
                await self.gate.acquire()
            if text == "fail":
                raise kserve.errors.InvalidInput("it cannot tell that")
            yield f"{text}\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    arguments, _ = parser.parse_known_args()
    kserve.ModelServer().start([Teller(arguments.model_name)])
