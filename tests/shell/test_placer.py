"""Who is loaded where and when: the placer against a node api that ends its loads when the test says so."""

from __future__ import annotations

import asyncio
import threading
from random import Random
from typing import Any

import pytest

from router.control import declarations, placer
from router.control.keeper import FleetKeeper
from router.control.placer import Placer
from router.errors import LoadFailed, NoNode, NotLoaded, Outcome, Refusal
from router.fleet.node import CopyState, NodeSpec
from router.fleet.reports import parse_ps, parse_tags
from router.fleet.tickets import Lease, Place, Ticket
from router.fleet.words import SharedLoad
from router.policy.placement import Action, Mode, place
from router.policy.room import OFFERED_S
from router.seams import NodeFailed
from router.simulation.catalog import model_of
from router.store.memory import MemoryStore
from router.wire.names import parse_name
from tests.shell.clients import Client, ask, generate, scrape
from tests.shell.house import router_before, until
from tests.shell.scenes import COLD, QUICK, SILENT, is_loading, let_load_finish, let_run, pool_of

EMBEDDING = (model_of("embed:1b", gib=0.3, load_s=0, is_embedding=True),)


class Clock:
    time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def wall_s(self) -> float:
        return 0.0


class Loads:
    """The node api: each load hangs until it is `end`ed."""

    def __init__(self) -> None:
        self.running: dict[tuple[str, str], asyncio.Future[float]] = {}
        self.asked: list[tuple[str, str, int, float | None]] = []
        self.resident: bytes | NodeFailed = b'{"models":[]}'

    async def ps(self, node: NodeSpec) -> tuple[bytes, float | None]:
        if isinstance(self.resident, NodeFailed):
            raise self.resident
        return self.resident, None

    async def load(self, node: NodeSpec, model: str, num_ctx: int, keep_alive_s: float | None) -> float:
        self.asked.append((node.name, model, num_ctx, keep_alive_s))
        future = self.running[node.name, model] = asyncio.get_running_loop().create_future()
        try:
            return await future
        finally:
            del self.running[node.name, model]

    def end(self, node: str, model: str, failed: Exception | None = None) -> None:
        future = self.running[node, model]
        if failed is None:
            future.set_result(1.0)
        else:
            future.set_exception(failed)


class House:
    """Nodes a, b ... with models m:1 and n:1 on disk, and a placer that runs."""

    def __init__(self, nodes: str, mode: Mode = Mode.ON_DEMAND) -> None:
        self.nodes = nodes
        self.clock = Clock()
        self.store = MemoryStore(self.clock, Random(0))
        self.keeper = FleetKeeper(self.store, self.clock, interval_s=2.0, on_circuit=lambda node, circuit: None)
        self.loads = Loads()
        self.ended: list[tuple[str, str, str, str]] = []
        self.granted: list[Lease] = []
        self.refused: list[tuple[str, Refusal]] = []
        self.placer = Placer(
            api=self.loads,  # type: ignore[arg-type]
            keeper=self.keeper,
            store=self.store,
            clock=self.clock,
            mode=mode,
            observe=lambda node, key, reason, result, took_s: self.ended.append((node, key, reason, result)),
        )

    async def __aenter__(self) -> House:
        await self.store.open(self._grant, lambda ticket, refusal: self.refused.append((ticket, refusal)))
        listed = b'{"models":[{"name":"m:1","digest":"dm","size":10},{"name":"n:1","digest":"dn","size":10}]}'
        for name in self.nodes:
            await self.keeper.add(NodeSpec(name, name, 11434))
            await self.keeper.answered(name, "0.33.0")
            await self.keeper.saw_tags(name, parse_tags(listed, lambda text: parse_name(text).key))
        self._task = asyncio.create_task(self.placer.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        for future in self.loads.running.values():
            future.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, self.placer.finish(1.0), return_exceptions=True)

    def _grant(self, lease: Lease) -> bool:
        self.granted.append(lease)
        return True

    async def wait_for(self, ticket: str, model: str = "m:1", **wish: object) -> None:
        answer = await self.store.take(Ticket(ticket, (parse_name(model).key,), **wish))  # type: ignore[arg-type]
        assert isinstance(answer, Place)
        self.keeper.wake_placer()

    @property
    def where(self) -> set[tuple[str, str]]:
        return set(self.loads.running)


async def test_one_load_serves_everybody_who_waits_and_asks_for_the_most_of_them() -> None:
    async with House("abc") as house:
        for number in range(5):
            await house.wait_for(f"t{number}", num_ctx=1024 * number, keep_alive_s=60.0 * number)
        await until(lambda: len(house.where) == 1)
        ((node, model),) = house.where
        assert house.loads.asked == [(node, "m:1", 4096, 240.0)]
        house.loads.end(node, model)
        await until(lambda: bool(house.granted))
        assert (house.granted[0].ticket, house.granted[0].node) == ("t0", node)
        assert house.ended == [(node, parse_name("m:1").key, "line", "ok")]
        assert len(house.loads.asked) == 1


async def test_a_load_outlives_everybody_who_asked_for_it() -> None:
    async with House("a") as house:
        await house.wait_for("t1")
        await until(lambda: len(house.where) == 1)
        await house.store.leave("t1")
        house.keeper.wake_placer()
        await asyncio.sleep(0)
        assert house.where == {("a", "m:1")}
        house.loads.end("a", "m:1")
        await until(lambda: bool(house.ended))
        assert isinstance(await house.store.take(Ticket("t2", (parse_name("m:1").key,))), Lease)


async def test_a_node_loads_one_model_at_a_time() -> None:
    async with House("a") as house:
        await house.wait_for("t1", "m:1")
        await until(lambda: len(house.where) == 1)
        await house.wait_for("t2", "n:1")
        await asyncio.sleep(0)
        assert house.where == {("a", "m:1")}
        house.loads.end("a", "m:1")
        await until(lambda: house.where == {("a", "n:1")})


async def test_a_pool_that_takes_long_to_weigh_is_weighed_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    on_loop: list[bool] = []

    def placed(*asked: Any, **told: Any) -> tuple[Action, ...]:
        on_loop.append(threading.current_thread() is threading.main_thread())
        return place(*asked, **told)

    monkeypatch.setattr(declarations, "place", placed)
    async with House("ab") as house:
        await house.wait_for("t1", "m:1")
        await until(lambda: len(house.where) == 1)
        assert set(on_loop) == {True}
        monkeypatch.setattr(placer, "PAIRS_ON_LOOP_MAX", 0)
        on_loop.clear()
        await house.wait_for("t2", "n:1")
        await until(lambda: len(house.where) == 2)
        assert set(on_loop) == {False}


async def test_two_models_are_loaded_on_two_nodes_at_once() -> None:
    async with House("ab") as house:
        await house.wait_for("t1", "m:1")
        await house.wait_for("t2", "n:1")
        await until(lambda: len(house.where) == 2)
        assert {node for node, _ in house.where} == {"a", "b"}


async def test_a_failed_load_goes_to_the_next_node_and_its_words_to_those_who_wait_at_last() -> None:
    async with House("ab") as house:
        await house.wait_for("t1")
        await until(lambda: len(house.where) == 1)
        ((first, _),) = house.where
        house.loads.end(first, "m:1", NodeFailed(500, "llama-server reported out-of-memory during startup: x"))
        second = "b" if first == "a" else "a"
        await until(lambda: house.where == {(second, "m:1")})
        assert house.refused == []
        house.loads.end(second, "m:1", NodeFailed(500, "the words"))
        await until(lambda: bool(house.refused))
        ((ticket, refusal),) = house.refused
        assert (ticket, type(refusal), refusal.status) == ("t1", LoadFailed, 500)
        assert "out-of-memory" in refusal.text or "the words" in refusal.text
        assert [result for *_, result in house.ended] == ["oom", "failed"]


async def test_after_a_failed_load_the_node_is_left_alone_for_a_while_and_then_tried_again() -> None:
    async with House("a") as house:
        await house.wait_for("t1")
        await until(lambda: len(house.where) == 1)
        house.loads.end("a", "m:1", NodeFailed(500, "no"))
        await until(lambda: len(house.refused) == 1)
        await house.wait_for("t2")
        await until(lambda: len(house.refused) == 2)
        assert len(house.loads.asked) == 1, "refused at once, the node is not asked"
        house.clock.time_s += 6
        await house.wait_for("t3")
        await until(lambda: len(house.loads.asked) == 2)
        house.loads.end("a", "m:1")
        await until(lambda: [lease.ticket for lease in house.granted] == ["t3"])


async def test_observe_touches_no_node() -> None:
    async with House("ab", Mode.OBSERVE) as house:
        await house.wait_for("t1")
        await until(lambda: bool(house.refused))
        assert isinstance(house.refused[0][1], NotLoaded)
        assert house.loads.asked == []


async def test_a_line_whose_nodes_are_gone_is_refused() -> None:
    async with House("a") as house:
        for _ in range(3):
            await house.keeper.missed("a")
        await house.wait_for("t1")
        await until(lambda: bool(house.refused))
        assert isinstance(house.refused[0][1], NoNode)


async def test_who_leaves_begins_nothing_and_finishes_what_runs() -> None:
    async with House("ab") as house:
        await house.wait_for("t1", "m:1")
        await until(lambda: len(house.where) == 1)
        finished = asyncio.create_task(house.placer.finish(60.0))
        await asyncio.sleep(0)
        await house.wait_for("t2", "n:1")
        await asyncio.sleep(0)
        assert not finished.done()
        assert len(house.where) == 1
        ((node, model),) = house.where
        house.loads.end(node, model)
        await finished
        assert [lease.ticket for lease in house.granted] == ["t1"]
        assert house.where == set()


async def test_who_leaves_waits_for_a_load_no_longer_than_it_is_told() -> None:
    async with House("a") as house:
        await house.wait_for("t1")
        await until(lambda: len(house.where) == 1)
        await house.placer.finish(0.01)
        assert house.where == set()
        assert repr(house.placer).startswith("<Placer 0 loading")


async def test_a_load_that_ends_in_a_defect_is_told_and_its_node_may_load_again() -> None:
    async with House("a") as house:
        await house.wait_for("t1")
        await until(lambda: len(house.where) == 1)
        house.loads.end("a", "m:1", ZeroDivisionError("a defect"))
        await until(lambda: bool(house.refused))
        assert "a defect" in house.refused[0][1].text
        assert [result for *_, result in house.ended] == ["failed"]
        house.clock.time_s += 6
        await house.wait_for("t2")
        await until(lambda: house.where == {("a", "m:1")})


async def test_a_defect_after_the_load_leaves_no_node_loading_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async with House("a") as house:
        await house.wait_for("t1")
        await until(lambda: len(house.where) == 1)

        async def defective(*args: object, **kwargs: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(house.keeper, "loaded", defective)
        house.loads.end("a", "m:1")
        await until(lambda: repr(house.placer).startswith("<Placer 0 loading"))


async def test_a_context_that_only_the_node_knows_is_read_before_anybody_is_let_in() -> None:
    async with House("a") as house:
        await house.wait_for("t1")
        await until(lambda: len(house.where) == 1)
        await house.wait_for("t2", num_ctx=32768)
        house.loads.resident = b'{"models":[{"name":"m:1","digest":"dm","size":10,"context_length":4096}]}'
        house.loads.end("a", "m:1")
        await until(lambda: bool(house.granted))
        assert [(lease.ticket, lease.num_ctx) for lease in house.granted] == [("t1", 4096)]
        await house.store.give_back(house.granted[0], Outcome.OK, 0)
        assert [lease.ticket for lease in house.granted] == ["t1"], "it would have reloaded the copy"
        assert house.keeper.loaded_ctx("a", house.granted[0].weights) == 0, "we named none"


async def test_a_node_that_does_not_list_its_memory_still_ends_its_load() -> None:
    async with House("a") as house:
        await house.wait_for("t1", num_ctx=8192)
        await until(lambda: len(house.where) == 1)
        house.loads.resident = NodeFailed(0, "no answer within 2 s")
        house.loads.end("a", "m:1")
        await until(lambda: bool(house.granted))
        assert house.granted[0].num_ctx == 8192


async def test_a_short_keep_alive_of_one_client_does_not_shorten_the_load_for_all() -> None:
    async with House("a") as house:
        await house.wait_for("t1", keep_alive_s=0.00001)
        await until(lambda: len(house.where) == 1)
        assert house.loads.asked == [("a", "m:1", 0, None)]


# The same from outside.


async def test_a_call_in_line_for_a_larger_context_never_reloads_what_was_loaded_for_others() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        node = pool.nodes[0]
        async with Client(router.port) as plain, Client(router.port) as larger:
            plain.send("/api/generate", {"model": COLD, "prompt": "?", "stream": False})
            await until(lambda: is_loading(node))
            larger.send("/api/generate", {"model": COLD, "prompt": "?", "options": {"num_ctx": 32768}})
            await until(lambda: len(router.pipeline.live) == 2)
            let_load_finish(node)
            assert (await plain.answer()).status == 200
            await until(lambda: not any(router.store.occupancy.values()))
            assert not is_loading(node)
            assert pool.loads_started == 1


async def test_in_observe_a_model_loaded_nowhere_is_refused_at_once() -> None:
    async with pool_of(2) as pool, router_before(pool.nodes, placement={"mode": "observe"}) as router:
        answer = await generate(router, QUICK)
        assert (answer.status, answer.refused) == (503, "not_loaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert pool.loads_started == 0


async def test_while_one_model_loads_others_are_served_and_loaded_elsewhere() -> None:
    async with pool_of(2) as pool, router_before(pool.nodes) as router, Client(router.port) as client:
        client.send("/api/generate", {"model": COLD, "prompt": "?"})
        await until(lambda: any(map(is_loading, pool.nodes)))
        loading = next(filter(is_loading, pool.nodes))
        answer = await generate(router, QUICK)
        assert (answer.status, answer.node != loading.name) == (200, True)
        let_load_finish(loading)
        assert (await client.answer()).status == 200


async def test_an_embedding_model_is_loaded_as_one() -> None:
    """A generate without a prompt is refused with 400 by a model that embeds only: the load tries /api/embed."""
    async with pool_of(1, models=EMBEDDING) as pool, router_before(pool.nodes) as router:
        answer = await ask(router, "/api/embed", {"model": "embed:1b", "input": "text"})
        assert (answer.status, len(answer.json["embeddings"])) == (200, 1)
        assert (await scrape(router)).value("model_loads_total", model="embed:1b", result="ok") == 1
        assert pool.loads_started == 1


async def test_a_context_that_is_asked_for_is_loaded_and_a_larger_one_is_refused_then() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        call = {"model": QUICK, "prompt": "?", "options": {"num_ctx": 16384}}
        first = await ask(router, "/api/generate", call)
        same = await ask(router, "/api/generate", call)
        larger = await ask(router, "/api/generate", {**call, "options": {"num_ctx": 32768}})
        assert (first.status, same.status) == (200, 200)
        assert (larger.status, larger.refused) == (400, "num_ctx")
        assert pool.loads_started == 1


async def test_a_node_that_is_busy_with_one_model_may_load_another() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router, Client(router.port) as busy:
        busy.send("/api/generate", {"model": SILENT, "prompt": "?"})
        await until(lambda: bool(router.store.occupancy))
        assert (await generate(router, QUICK)).status == 200
        let_run(pool.nodes[0])
        assert (await busy.answer()).status == 200


LISTED = b'{"models":[{"name":"m:1","digest":"dm","size":10},{"name":"n:1","digest":"dn","size":10}]}'


async def crowd_out(house: House, num_ctx: int) -> None:
    """A card with room for one: m:1 serves there, loaded with `num_ctx` if that is not 0, and n:1 is to take its place.
    Ollama is asked to let m:1 go first."""
    await house.keeper.add(NodeSpec("a", "a", 11434, vram_bytes=15))
    await house.keeper.answered("a", "0.33.0")
    await house.keeper.saw_tags("a", parse_tags(LISTED, lambda text: parse_name(text).key))
    entry = f'{{"name":"m:1","digest":"dm","size":10,"size_vram":10,"context_length":{num_ctx or 4096}}}'
    house.loads.resident = f'{{"models":[{entry}]}}'.encode()
    await house.wait_for("t1", "m:1", num_ctx=num_ctx)
    await until(lambda: house.where == {("a", "m:1")})
    house.loads.end("a", "m:1")
    await until(lambda: bool(house.granted))
    await house.store.give_back(house.granted[0], Outcome.OK, 1)
    await house.keeper.saw_ps("a", parse_ps(house.loads.resident, lambda text: parse_name(text).key), 0.0, 100.0)
    house.clock.time_s += 600.0
    await house.wait_for("t2", "n:1")
    await until(lambda: house.where == {("a", "m:1")})
    assert house.loads.asked[-1] == ("a", "m:1", num_ctx or 4096, OFFERED_S)


async def test_what_a_load_displaces_is_offered_to_ollama_and_gets_no_calls_meanwhile() -> None:
    async with House("") as house:
        await crowd_out(house, num_ctx=0)
        assert isinstance(await house.store.take(Ticket("t3", (parse_name("m:1").key,))), Place)
        house.loads.end("a", "m:1")
        await until(lambda: house.where == {("a", "n:1")})
        house.loads.end("a", "n:1")
        await until(lambda: {lease.ticket for lease in house.granted} >= {"t2", "t3"})


async def test_what_ollama_kept_after_all_is_still_known_to_have_a_context_that_the_router_named() -> None:
    async with House("") as house:
        await crowd_out(house, num_ctx=8192)
        house.loads.end("a", "m:1")
        await until(lambda: house.where == {("a", "n:1")})
        house.loads.end("a", "n:1")
        await until(lambda: "t2" in {lease.ticket for lease in house.granted})
        await until(lambda: not house.placer.loading)
        key = parse_name("m:1").key
        assert isinstance(await house.store.take(Ticket("t3", (key,), names_no_ctx=True)), Place)
        await house.store.leave("t3")
        assert isinstance(await house.store.take(Ticket("t4", (key,), num_ctx=8192)), Lease)


async def test_a_copy_that_has_just_come_takes_room_before_the_next_probe() -> None:
    async with House("") as house:
        await house.keeper.add(NodeSpec("a", "a", 11434, vram_bytes=15))
        await house.keeper.answered("a", "0.33.0")
        await house.keeper.saw_tags("a", parse_tags(LISTED, lambda text: parse_name(text).key))
        house.loads.resident = b'{"models":[{"name":"m:1","digest":"dm","size":10,"size_vram":10}]}'
        await house.wait_for("t1", "m:1")
        await until(lambda: house.where == {("a", "m:1")})
        await house.wait_for("t2", "n:1")
        house.loads.end("a", "m:1")
        await until(lambda: bool(house.granted) and not house.placer.loading)
        (copy,) = house.keeper.snapshot.nodes["a"].copies.values()
        assert (copy.state, copy.vram_bytes) == (CopyState.READY, 10)
        house.clock.time_s += 1.0
        house.keeper.wake_placer()
        await until(lambda: house.placer.experience.at_s == house.clock.time_s)
        assert not house.where, "n:1 does not fit beside it, and it has served nobody yet"


async def wait_for_memory(house: House) -> None:
    """n:1 is loading on a card where m:1 serves; nobody declared its memory, and it should have ended long ago."""
    house.loads.resident = b'{"models":[{"name":"m:1","digest":"dm","size":10,"size_vram":10,"context_length":4096}]}'
    await house.wait_for("t1", "m:1")
    await until(lambda: house.where == {("a", "m:1")})
    house.loads.end("a", "m:1")
    await until(lambda: bool(house.granted) and not house.placer.loading)
    await house.store.give_back(house.granted[0], Outcome.OK, 1)
    await house.wait_for("t2", "n:1")
    await until(lambda: house.where == {("a", "n:1")})
    house.clock.time_s += 60.0
    house.keeper.wake_placer()


async def test_a_node_that_is_told_late_what_goes_holds_up_no_load_elsewhere() -> None:
    async with House("a") as house:
        await wait_for_memory(house)
        await until(lambda: house.where == {("a", "n:1"), ("a", "m:1")})
        await house.keeper.add(NodeSpec("b", "b", 11434))
        await house.keeper.answered("b", "0.33.0")
        listed = b'{"models":[{"name":"o:1","digest":"do","size":10}]}'
        await house.keeper.saw_tags("b", parse_tags(listed, lambda text: parse_name(text).key))
        await house.wait_for("t3", "o:1")
        await until(lambda: ("b", "o:1") in house.where)
        assert ("a", "m:1") in house.where, "it has not answered yet"


async def test_a_copy_that_was_to_go_for_a_load_that_ended_meanwhile_is_free_again() -> None:
    async with House("a") as house:
        began, told = house.store.begin, asyncio.Event()

        async def begin(node: str, weights: str, *, loading: bool, epoch: int) -> bool:
            answer = await began(node, weights, loading=loading, epoch=epoch)
            if not loading:  # as with a store that is a network away: the load ends before its answer is here
                house.loads.end("a", "n:1")
                await until(lambda: not house.placer.loading)
                told.set()
            return answer

        house.store.begin = begin  # type: ignore[method-assign]
        await wait_for_memory(house)
        await told.wait()
        await until(lambda: "t2" in {lease.ticket for lease in house.granted})
        assert isinstance(await house.store.take(Ticket("t3", (parse_name("m:1").key,))), Lease)


async def test_for_a_late_load_of_the_leader_before_it_a_copy_goes_and_serves_again_when_that_load_has_ended() -> None:
    async with House("a") as house:
        house.loads.resident = (
            b'{"models":[{"name":"m:1","digest":"dm","size":10,"size_vram":10,"context_length":4096}]}'
        )
        await house.keeper.saw_ps("a", parse_ps(house.loads.resident, lambda text: parse_name(text).key), 0.0, 100.0)
        told, key = house.keeper.firsthand.loads, parse_name("n:1").key
        told.live = frozenset({"old"})
        told.heard("a", "old", SharedLoad("dn", key, "n:1", 0, None, False, (), "line", 100.0), 100.0)
        await house.wait_for("t1", "n:1")
        house.clock.time_s += 60.0
        house.keeper.wake_placer()
        await until(lambda: house.where == {("a", "m:1")})
        assert house.loads.asked[-1] == ("a", "m:1", 4096, OFFERED_S)
        assert not house.placer.loading, "n:1 is on its way"
        asked = Ticket("t2", (parse_name("m:1").key,))
        assert isinstance(await house.store.take(asked), Place)
        house.loads.end("a", "m:1")
        told.heard("a", "old", None, 160.0)
        house.keeper.wake_placer()
        await until(lambda: "t2" in {lease.ticket for lease in house.granted})
