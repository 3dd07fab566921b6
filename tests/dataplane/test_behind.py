"""A model behind another one: seen by operators, called by nobody but the one in front."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from dataplane_support import Doubler, rows_of
from serinus import InferRequest, InferResponse, ModelSettings, RequestModel
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.errors import ConfigError, NotFound
from waiting import until


class Front(RequestModel):
    """Asks the model behind it, one request at a time."""

    behind: Any = None

    async def start(self) -> None:
        assert self.serve_behind is not None
        self.behind = await self.serve_behind(Doubler, self.settings)

    async def infer(self, request: InferRequest) -> InferResponse:
        return await self.behind.infer(InferRequest(self.name, request.inputs))


async def started(*names: str, expose: bool = False, factory: Any = None) -> Plane:
    plane = Plane(Registry(factory or Front, expose_behind=expose))
    await plane.start([ModelSettings(name=name) for name in names])
    return plane


async def test_its_batches_are_seen_under_its_own_name():
    plane = await started("front")
    try:
        model: Any = plane.registry.look_up("front-predictor").model
        at_warm_up = len(model.sizes)
        await asyncio.gather(*(plane.infer(rows_of(100 + n, name="front")) for n in range(32)))
        (told,) = plane.statistics("front-predictor")
        ran = model.sizes[at_warm_up:]
        assert told["name"] == "front-predictor"
        assert told["inference_count"] == 32
        assert sum(row["batch_size"] * row["compute_infer"]["count"] for row in told["batch_stats"]) == 32
        assert sorted(row["batch_size"] for row in told["batch_stats"]) == sorted(set(ran))
        assert max(ran) > 1
        page = plane.metrics.render().decode()
        assert re.search(r'nv_inference_count\{model="front-predictor"[^}]*\} 32\b', page)
        assert [row["name"] for row in plane.statistics()] == ["front", "front-predictor"]
    finally:
        await plane.close()


async def test_it_tells_of_itself_and_is_in_no_index():
    plane = await started("front")
    try:
        assert plane.model_ready("front-predictor")
        assert [spec.name for spec in plane.model_metadata("front-predictor").inputs] == ["x"]
        assert plane.model_config("front-predictor").max_batch_rows > 0
        assert [row["name"] for row in plane.repository_index()] == ["front"]
        assert plane.model_names() == ["front"]
    finally:
        await plane.close()


async def test_clients_cannot_call_it_past_the_one_in_front_unless_that_is_opened():
    plane = await started("front")
    try:
        with pytest.raises(NotFound, match=r"stands behind model 'front'.*--expose_predictor"):
            await plane.infer(rows_of(1, name="front-predictor"))
        with pytest.raises(NotFound, match="stands behind"):
            await plane.predict_v1("front-predictor", b'{"instances": [[1, 2]]}')
        with pytest.raises(NotFound, match="stands behind"):
            plane.check_served("front-predictor")
    finally:
        await plane.close()
    opened = await started("front", expose=True)
    try:
        answer = await opened.infer(rows_of(1, name="front-predictor"))
        assert answer.outputs[0].data.tolist() == [[2, 2]]
    finally:
        await opened.close()


@pytest.mark.parametrize("names", [("front", "front-predictor"), ("front-predictor", "front")], ids="-".join)
async def test_its_name_is_nobody_elses(names: tuple[str, str]):
    plane = Plane(Registry(Front))
    try:
        await plane.start([ModelSettings(name=names[0])])
        with pytest.raises(ConfigError, match="front-predictor"):
            await plane.start([ModelSettings(name=names[1])])
        assert plane.model_ready(names[0])
    finally:
        await plane.close()


async def test_it_is_unloaded_after_the_one_in_front_and_made_anew_by_a_reload():
    unloaded: list[str] = []

    class Watched(Front):
        def unload(self) -> None:
            unloaded.append("front")

        async def start(self) -> None:
            await super().start()
            self.behind.model.unload = lambda: unloaded.append("behind")

    plane = await started("front", factory=Watched)
    first = plane.registry.look_up("front-predictor")
    await plane.load("front")
    await until(lambda: len(unloaded) == 2)
    assert unloaded == ["front", "behind"]
    assert plane.registry.look_up("front-predictor") is not first
    assert plane.registry.look_up("front-predictor").statistics is first.statistics
    await plane.close()
    assert unloaded == ["front", "behind"] * 2


async def test_the_one_in_front_is_not_ready_while_it_is_not():
    class Ailing(RequestModel):
        well = True

        async def is_ready(self) -> bool:
            return self.well

        async def infer(self, request: InferRequest) -> InferResponse:
            return InferResponse(self.name, request.inputs)

    class Above(Front):
        async def start(self) -> None:
            assert self.serve_behind is not None
            self.behind = await self.serve_behind(Ailing, self.settings)

    plane = await started("front", factory=Above)
    try:
        assert plane.ready()
        behind: Any = plane.registry.look_up("front-predictor")
        behind._healthy = False
        assert not plane.ready()
        assert not plane.model_ready("front")
    finally:
        await plane.close()
