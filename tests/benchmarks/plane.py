"""What the data plane itself costs: microseconds per one-row request around a trivial model.

    python tests/benchmarks/plane.py [--profile]

`concurrent` requests are submitted in each turn of the loop, as a transport that has read that many would; the figure is CPU
time of the process over requests, the load generator's own work (making the request, being called back) included.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import statistics
import sys
import time

import numpy as np
import uvloop

from serinus import InferRequest, InferResponse, Model, ModelSettings, Tensor, TensorSpec
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.errors import SerinusError

ROWS = np.zeros((1, 30), np.float32)


class Constant(Model):
    """Answers zeros; its predict costs about a microsecond."""

    execution = "inline"
    inputs = (TensorSpec("x", "FP32", (-1, 30)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)

    def load(self) -> None:
        """Make the answer once."""
        self._zeros = np.zeros(8192, np.float32)

    def predict(self, inputs, call):
        """Cut the answer to size."""
        return {"y": self._zeros[: len(inputs["x"])]}


async def turn(plane: Plane, concurrent: int, turns: int) -> float:
    """Time `turns` turns of `concurrent` requests each; CPU seconds per request."""
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    left = turns
    waiting = 0

    def done(answer: InferResponse | SerinusError) -> None:
        nonlocal left, waiting
        waiting -= 1
        if not waiting:
            left -= 1
            if left:
                loop.call_soon(submit)
            else:
                finished.set_result(None)

    def submit() -> None:
        nonlocal waiting
        waiting = concurrent
        for _ in range(concurrent):
            plane.infer_nowait(InferRequest("constant", (Tensor("x", "FP32", (1, 30), ROWS),)), done)

    start = time.process_time()
    loop.call_soon(submit)
    await finished
    return (time.process_time() - start) / (turns * concurrent)


async def main() -> None:
    """Print a table."""
    plane = Plane(Registry(Constant))
    await plane.start([ModelSettings(name="constant")])
    for concurrent in (1, 16, 64):
        turns = 20_000 // concurrent
        await turn(plane, concurrent, turns // 10)
        times = [1e6 * await turn(plane, concurrent, turns) for _ in range(7)]
        print(
            f"concurrent {concurrent:3d}: best {min(times):5.2f} us, median {statistics.median(times):5.2f} us a request"
        )
    if "--profile" in sys.argv:
        profile = cProfile.Profile()
        profile.enable()
        await turn(plane, 16, 5000)
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)
    await plane.close()


if __name__ == "__main__":
    uvloop.run(main())
