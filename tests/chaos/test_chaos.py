"""What becomes of calls when a router, or what routers share, is killed, paused, frozen, dropped or cut off.

Real processes under load: three routers, four nodes that count for themselves, three teams. In each scene no call is
lost but the open streams of a killed router, no copy runs more than the bound of docs/store.md, and afterwards nothing
is held for anybody. `make chaos` runs the long form, with faults of 20 s.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.chaos.house import FEWER, REAPED, ROUTERS, SHARED, House, are_back, until
from tests.chaos.scenes import SLACK_S, Form, Scene, scene
from tests.fakes import redis_server
from tests.fakes.fault_proxy import Mood
from tests.fakes.redis_groups import Watched

FREE_WITHIN_S = 10.0
GUST_S, LULL_S = (0.1, 3.0), (0.0, 2.0)
DELAYS_S = (0.01, 0.1, 0.4)
OUT_OF_ROTATION_S = 1.0  # so long a balancer sends calls to a router that does not answer

SHORT = Form(before_s=2.0, fault_s=8.0, after_s=2.0, timeout_s=2.0)
LONG = Form(before_s=15.0, fault_s=20.0, after_s=20.0, timeout_s=0.25)
_LONG = pytest.param(LONG, id="long", marks=(pytest.mark.chaos, pytest.mark.timeout(300)))
forms = pytest.mark.parametrize("form", [pytest.param(SHORT, id="short", marks=pytest.mark.timeout(180)), _LONG])
long_form = pytest.mark.parametrize("form", [_LONG])

ONCE = (1, 1)  # one line when the store is lost, one when it is back
NEVER = (0, 0)


@forms
async def test_what_a_killed_router_held_is_free_within_ten_seconds(form: Form, tmp_path: Path) -> None:
    async with scene(form, tmp_path) as at:
        made, victim = at.house, at.house.leader()
        others = [router for router in made.routers if router is not victim]
        cold = asyncio.create_task(at.ask_for_what_is_cold(made.routers))
        await until(lambda: is_loading(made))
        async with at.fault(f"kill -9 of {victim.name}, which leads and loads"):
            victim.kill()
            freed_s = await until(lambda: made.holds_for(victim) == 0)
            made.say(f"its leases and tickets are free after {freed_s:.2f} s")
            victim.is_in_rotation = False
            await cold
        assert freed_s < FREE_WITHIN_S
        assert made.leader() in others
        assert at.tell_waits(others) < SLACK_S
        await at.all_said({router.name: NEVER for router in others})
        assert [router.count(FEWER) for router in others] == [1, 1]


@forms
async def test_a_router_that_was_paused_past_its_reaping_comes_back_and_orders_nothing_late(
    form: Form, tmp_path: Path
) -> None:
    async with scene(form, tmp_path) as at:
        made, victim = at.house, at.house.leader()
        others = [router for router in made.routers if router is not victim]
        cold = asyncio.create_task(at.ask_for_what_is_cold(made.routers))
        await until(lambda: is_loading(made))
        async with at.fault(f"{victim.name} is paused, which leads and loads"):
            victim.send(signal.SIGSTOP)
            await asyncio.sleep(OUT_OF_ROTATION_S)
            victim.is_in_rotation = False
            freed_s = await until(lambda: victim.process.pid not in made.replicas())
            made.say(f"it is reaped after {freed_s + OUT_OF_ROTATION_S:.2f} s")
            await until(lambda: made.leader() in others)
        victim.send(signal.SIGCONT)
        await cold
        victim.is_in_rotation = True
        await until(lambda: victim.process.pid in made.replicas())
        assert at.tell_waits(others) < SLACK_S
        await at.all_said({router.name: NEVER for router in made.routers})
        await until(lambda: all(router.last(SHARED).startswith(f"{ROUTERS} ") for router in others))
        assert [router.count(FEWER) for router in made.routers] == [router is not victim for router in made.routers]
        assert victim.count(REAPED) == 1
        assert made.leader() in others


@forms
async def test_frozen_redis_holds_no_call_up_and_nobody_is_reaped_for_its_silence(form: Form, tmp_path: Path) -> None:
    async with scene(form, tmp_path) as at:
        known = at.house.replicas()
        await goes_on_alone(at, "Redis is frozen", at.house.server.freeze, at.house.server.thaw)
        assert at.house.replicas() == known


@forms
async def test_redis_that_is_killed_and_comes_back_empty_learns_all_again(form: Form, tmp_path: Path) -> None:
    async with scene(form, tmp_path) as at:
        await goes_on_alone(at, "Redis is dropped", at.house.server.kill, lambda: bool(at.house.server.start()))


@forms
async def test_a_router_that_is_cut_off_goes_on_alone_while_the_others_share(form: Form, tmp_path: Path) -> None:
    await is_cut_off(form, tmp_path, Mood.STALL)


@long_form
async def test_a_router_whose_connections_are_refused_goes_on_alone_as_well(form: Form, tmp_path: Path) -> None:
    await is_cut_off(form, tmp_path, Mood.REFUSE)


async def is_cut_off(form: Form, folder: Path, mood: Mood) -> None:
    async with scene(form, folder) as at:
        made, victim = at.house, at.house.leader()
        others = [router for router in made.routers if router is not victim]
        async with at.fault(f"{victim.name}, which leads, is cut off: {mood}"):
            await victim.proxy.set(mood)
            await until(victim.is_degraded)
            await at.ask_for_what_is_cold(made.routers)
        await victim.proxy.set(Mood.PASS)
        await at.all_said({victim.name: ONCE} | {router.name: NEVER for router in others})
        assert at.tell_waits(made.routers) < 2 * form.timeout_s + SLACK_S


@forms
async def test_a_primary_that_dies_under_sentinels_is_followed_by_its_replica(form: Form, tmp_path: Path) -> None:
    """What it did not pass on before it died is told again by hello."""
    async with scene(form, tmp_path, Watched(redis_server.any_binary())) as at:
        made, before = at.house, at.house.server
        assert isinstance(made.store, Watched)
        async with at.fault("the primary is killed", for_s=0.0):
            before.kill()
            cold = asyncio.create_task(at.ask_for_what_is_cold(made.routers))
            await asyncio.to_thread(made.store.await_another_than, before)
            made.say("its replica is the primary")
            await at.all_said({router.name: ONCE for router in made.routers})
            await cold
        assert at.tell_waits(made.routers) < 2 * form.timeout_s + SLACK_S
        made.say(f"the cold model was loaded {await made.loads('load_started')} times")


@long_form
async def test_faults_that_come_and_go_at_random_leave_nothing_behind(form: Form, tmp_path: Path) -> None:
    """Short ones, of which some pass before anybody has noticed."""
    async with scene(form, tmp_path) as at:
        made, rng = at.house, Random(at.house.seed)
        async with at.fault("a storm"):
            while time.monotonic() < at.began_s + form.fault_s:
                await gust(made, rng)
        assert made.replicas() == {router.process.pid for router in made.routers}
        await until(lambda: are_back(made))
        assert all(away == back for away, back in at.changes().values())


async def gust(made: House, rng: Random) -> None:
    router, for_s = rng.choice(made.routers), rng.uniform(*GUST_S)
    what = rng.choice(("pause", "freeze", "cut", Mood.REFUSE, Mood.STALL, Mood.DELAY))
    made.say(f"{what} for {for_s:.2f} s, {router.name} where it is one")
    if what == "pause":
        router.send(signal.SIGSTOP)
    elif what == "freeze":
        made.server.freeze()
    elif what == "cut":
        await router.proxy.cut()
    else:
        await router.proxy.set(Mood(what), delay_s=rng.choice(DELAYS_S))
    await asyncio.sleep(for_s)
    router.send(signal.SIGCONT)
    made.server.thaw()
    await router.proxy.set(Mood.PASS)
    await asyncio.sleep(rng.uniform(*LULL_S))


async def goes_on_alone(at: Scene, what: str, break_it: Callable[[], object], heal: Callable[[], object]) -> None:
    """All routers at once; the cold model, asked for by each, is loaded once."""
    made = at.house
    async with at.fault(what):
        break_it()
        await at.ask_for_what_is_cold(made.routers)
    assert await made.loads("load_started") == 1
    heal()
    await at.all_said({router.name: ONCE for router in made.routers})
    assert at.tell_waits(made.routers) < 2 * at.form.timeout_s + SLACK_S


async def is_loading(made: House) -> bool:
    return await made.loads("load_started") > 0
