"""The back-off of a process that ends: doubled to a limit, begun anew after a steady life, a loop from the second end on."""

from __future__ import annotations

import pytest

from serinus.local.run.processes.crash_back_off import CrashBackOff


@pytest.mark.parametrize(
    ("lives", "pauses", "loop"),
    [
        ((), (), False),
        ((1.0,), (0.5,), False),
        ((1.0, 1.0), (0.5, 1.0), True),
        ((1.0,) * 9, (0.5, 1, 2, 4, 8, 16, 30, 30, 30), True),
        ((1.0, 1.0, 25.0), (0.5, 1.0, 0.5), False),
        ((1.0, 20.0), (0.5, 1.0), True),
        ((1.0, 25.0, 0.1), (0.5, 0.5, 1.0), True),
    ],
)
def test_pauses_double_up_to_half_a_minute_until_a_life_is_steady(
    lives: tuple[float, ...], pauses: tuple[float, ...], loop: bool
) -> None:
    back_off = CrashBackOff()
    assert tuple(back_off.ended(life) for life in lives) == pauses
    assert back_off.is_loop == loop


def test_a_thousand_ends_overflow_nothing() -> None:
    back_off = CrashBackOff()
    assert [back_off.ended(0.0) for _ in range(2000)][-1] == 30.0
