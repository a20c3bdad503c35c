"""The clockwork of the loops: none of them ever ends by itself."""

from __future__ import annotations

import asyncio

from broker.control.loops import Loops


async def test_a_loop_whose_step_awaits_something_that_is_cancelled_goes_on() -> None:
    """An account that is closed while its list of machines is read cancelled the call that waited in its pool, and with it the
    reconcile loop, for good: nothing of the whole house was swept or given back any more."""
    woken, ran = asyncio.Event(), asyncio.Queue[int]()
    runs = 0

    async def step() -> None:
        nonlocal runs
        runs += 1
        ran.put_nowait(runs)
        if runs == 1:
            gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone

    loops = Loops({"reconcile": (3600, step)}, {"reconcile": woken})
    loops.start()
    try:
        async with asyncio.timeout(60):
            assert await ran.get() == 1
            await asyncio.sleep(0)  # its task ends, and says so
            woken.set()
            assert await ran.get() == 2
    finally:
        await loops.stop(within_s=1)
    assert loops.states["reconcile"].defects == 1, "and it is seen"


async def test_a_loop_that_is_stopped_is_not_begun_again() -> None:
    hanging = asyncio.Event()

    async def step() -> None:
        hanging.set()
        await asyncio.Event().wait()

    loops = Loops({"plan": (3600, step)}, {"plan": asyncio.Event()})
    loops.start()
    await hanging.wait()
    await loops.stop(within_s=0)
    assert loops.states["plan"].defects == 0
