"""The store over Redis for the contract's suite: the same steps, one command a round trip, at the suite's own clock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import redis

from router.errors import Refusal
from router.fleet.tickets import CopyReport, Gate, Lease, Ticket
from router.store.answers import Answer, Caller, Limits, Refused
from router.store.redis import codec, script

BATCH = 256
POOL = "test"


class RedisBook:
    """`Book`'s methods, each answered by a real server."""

    def __init__(self, client: redis.Redis, pool: str, limits: Limits, settle_s: float) -> None:
        self.client = client
        self.prefix = script.prefix(pool)
        self.settle_s = settle_s
        self.run = "1"
        self.function = script.name()
        self._limits: Limits | None = limits

    @property
    def seq(self) -> int:
        """As the last step left it; a step that says nothing else would move it."""
        raw = self.client.get(f"{self.prefix}meta")
        return int(self.client.eval("return cmsgpack.unpack(ARGV[1]).seq", 0, raw)) if raw else 0

    def hello(
        self,
        replica: str,
        last_seq: int,
        leases: Sequence[Lease],
        tickets: Sequence[Ticket],
        now_s: float,
        *,
        greeting: int,
    ) -> Answer[int]:
        command = codec.hello(last_seq, leases, tickets, greeting=greeting)
        if self._limits is None:
            return self._do(Caller(replica, 0), command, now_s)
        # Limits are known before anybody speaks, as a Book's are.
        limits, self._limits = self._limits, None
        self._keep(limits)
        return self._do(Caller(replica, 0), command, now_s)

    def bye(self, caller: Caller, now_s: float) -> Answer[None]:
        return self._do(caller, codec.bye(), now_s)

    def beat(
        self, caller: Caller, acked: Iterable[str], now_s: float, *, heard: Iterable[str] = ()
    ) -> Answer[tuple[str, ...]]:
        return self._do(caller, codec.beat(acked, heard), now_s)

    def read(self, caller: Caller, now_s: float) -> Answer[None]:
        return self._do(caller, codec.read(), now_s)

    def ack(self, caller: Caller, lease_ids: Iterable[str], now_s: float) -> Answer[tuple[str, ...]]:
        return self._do(caller, codec.ack(lease_ids), now_s)

    def reap(self, now_s: float) -> Answer[tuple[str, ...]]:
        return self._do(Caller("", 0), codec.reap(), now_s)

    def take(self, caller: Caller, ticket: Ticket, now_s: float) -> Answer[Any]:
        return self._do(caller, codec.take(ticket), now_s)

    def widen(self, caller: Caller, ticket_id: str, targets: Iterable[str], now_s: float) -> Answer[Any]:
        return self._do(caller, codec.widen(ticket_id, targets), now_s)

    def place_of(self, caller: Caller, ticket_id: str, now_s: float) -> Answer[Any]:
        return self._do(caller, codec.place_of(ticket_id), now_s)

    def leave(self, caller: Caller, ticket_id: str, now_s: float, *, tokens: int = 0) -> Answer[None]:
        return self._do(caller, codec.leave(ticket_id, tokens), now_s)

    def give_back(self, caller: Caller, lease_id: str, now_s: float, *, tokens: int = 0) -> Answer[None]:
        return self._do(caller, codec.give_back(lease_id, tokens), now_s)

    def refuse(self, caller: Caller, model: str, refusal: Refusal, now_s: float) -> Answer[int]:
        return self._do(caller, codec.refuse(model, refusal), now_s)

    def lines(self, caller: Caller, now_s: float) -> Answer[Any]:
        return self._do(caller, codec.lines(), now_s)

    def set_limits(self, caller: Caller, limits: Limits, now_s: float) -> Answer[None]:
        return self._do(caller, codec.set_limits(limits), now_s)

    def set_copy(self, caller: Caller, report: CopyReport, now_s: float) -> Answer[None]:
        return self._do(caller, codec.set_copy(report), now_s)

    def drop_node(self, caller: Caller, node: str, incarnation: int, now_s: float) -> Answer[None]:
        return self._do(caller, codec.drop_node(node, incarnation), now_s)

    def incarnate(self, caller: Caller, node: str, uid: str, now_s: float) -> Answer[int]:
        return self._do(caller, codec.incarnate(node, uid), now_s)

    def lead(self, caller: Caller, now_s: float, *, wants: bool = True) -> Answer[Any]:
        return self._do(caller, codec.lead(wants=wants), now_s)

    def begin(
        self, caller: Caller, node: str, weights: str, now_s: float, *, loading: bool, epoch: int
    ) -> Answer[bool]:
        return self._do(caller, codec.begin(node, weights, loading=loading, epoch=epoch), now_s)

    def gate(
        self, caller: Caller, node: str, weights: str | None, gate: Gate, now_s: float, *, until_s: float
    ) -> Answer[None]:
        return self._do(caller, codec.gate(node, weights, gate, until_s), now_s)

    def many(self, caller: Caller, commands: Sequence[codec.Command], now_s: float) -> list[Answer[Any]]:
        """In one run of the script, as a batch is."""
        speaker = {
            "replica": caller.replica,
            "session": caller.session,
            "run": self.run,
            "settle": self.settle_s,
            "clock": now_s,
        }
        args = (json.dumps(speaker), *(command.text for command in commands))
        try:
            texts = self.client.execute_command("FCALL", self.function, 1, self.prefix, *args)
        except redis.exceptions.ResponseError as error:
            if str(error) != "Function not found":
                raise
            self.client.execute_command("FUNCTION", "LOAD", script.library())
            texts = self.client.execute_command("FCALL", self.function, 1, self.prefix, *args)
        return [codec.answer(command, text) for command, text in zip(commands, texts, strict=True)]

    def _do(self, caller: Caller, command: codec.Command, now_s: float) -> Answer[Any]:
        return self.many(caller, (command,), now_s)[0]

    def _keep(self, limits: Limits) -> None:
        _, facts = json.loads(codec.set_limits(limits).text)
        fields: dict[str, Any] = {"line": facts["line"], "team": self._packed(facts["team"])}
        fields.update({f"line:{key}": value for key, value in facts["lines"].items()})
        fields.update({f"team:{name}": self._packed(value) for name, value in facts["teams"].items()})
        self.client.hset(f"{self.prefix}limits", mapping=fields)

    def _packed(self, value: Any) -> Any:
        return self.client.eval("return cmsgpack.pack(cjson.decode(ARGV[1]))", 0, json.dumps(value))


class RedisHarness:
    """What a test may do and a replica may not: look at streams, lose writes."""

    def __init__(self, client: redis.Redis, limits: Limits, settle_s: float) -> None:
        client.flushdb()
        self.store = RedisBook(client, POOL, limits, settle_s)

    def each(self, caller: Caller, command: str, arguments: Sequence[tuple[Any, ...]], now_s: float) -> list[Any]:
        """A few hundred in a run of the script."""
        more = {"leave": (0,), "give_back": (0,)}.get(command, ())
        commands = [getattr(codec, command)(*args, *more) for args in arguments]
        starts = range(0, len(commands), BATCH)
        answers = [self.store.many(caller, commands[start : start + BATCH], now_s) for start in starts]
        return [answer.value for part in answers for answer in part]

    def streams(self) -> dict[str, list[Lease | Refused]]:
        client, begin = self.store.client, f"{self.store.prefix}stream:"
        keys = [key.decode() for key in client.scan_iter(f"{begin}*", count=1000)]
        return {
            key.removeprefix(begin): [codec.news(json.loads(entry[b"news"])) for _, entry in client.xrange(key)]
            for key in sorted(keys)
        }

    def leases_on(self, node: str, weights: str) -> int:
        return int(self.store.client.hget(f"{self.store.prefix}occupancy", f"{node}\0{weights}") or 0)

    def teams_known(self) -> int:
        return int(self.store.client.hlen(f"{self.store.prefix}teams"))

    def knows_team(self, name: str) -> bool:
        return bool(self.store.client.hexists(f"{self.store.prefix}teams", name))

    def snapshot(self) -> dict[bytes, bytes]:
        client = self.store.client
        return {key: client.dump(key) for key in client.keys("*")}

    def fail_over(self, to: dict[bytes, bytes]) -> None:
        client = self.store.client
        client.flushdb()
        for key, value in to.items():
            client.restore(key, 0, value)
        self.store.run += "'"

    def check(self) -> None:
        """Nothing yet between steps: the histories' model judges what the steps do."""
