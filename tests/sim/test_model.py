"""The pure model of a node: what Ollama's scheduler does, in virtual time."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from router.simulation.facts import (
    FOREVER_S,
    GIB,
    Began,
    Busy,
    CopyEvent,
    Died,
    Effect,
    Ended,
    Event,
    NodeLimits,
    Ready,
    Token,
    Want,
    Weights,
    Work,
)
from router.simulation.model import NodeModel

A = Weights("a" * 64, GIB, GIB, load_s=2.0, prefill_tps=100.0, decode_tps=10.0, decode_exponent=0.5)
B = replace(A, blob="b" * 64)
C = replace(A, blob="c" * 64)


def chat(weights: Weights = A, *, prompt: int = 10, output: int = 5, start: int = 0, **more: object) -> Work:
    work = Work(weights.blob[0], weights, prompt=tuple(range(start, start + prompt)), output_tokens=output)
    return replace(work, **more)  # type: ignore[arg-type]


def events(effects: list[Effect]) -> list[Event]:
    return [effect.event for effect in effects if isinstance(effect, CopyEvent)]


def ended(effects: list[Effect]) -> dict[int, Ended]:
    return {effect.call: effect for effect in effects if isinstance(effect, Ended)}


def test_a_cold_call_loads_prefills_and_decodes_one_after_the_other() -> None:
    node = NodeModel(NodeLimits())
    assert events(node.ask(1, chat(), 0.0)) == [Event.LOAD_STARTED]
    effects = node.advance(10.0)
    tokens = [round(effect.at_s, 6) for effect in effects if isinstance(effect, Token)]
    assert tokens == [2.1, 2.2, 2.3, 2.4, 2.5]
    timing = ended(effects)[1].timing
    assert (round(timing.load_s, 6), round(timing.prefill_s, 6), round(timing.decode_s, 6)) == (2.0, 0.1, 0.4)


def test_fifty_cold_calls_cause_one_load() -> None:
    node = NodeModel(NodeLimits(num_parallel=4))
    seen: list[Effect] = []
    for call in range(50):
        seen += node.ask(call, chat(start=call * 100), 0.0)
    seen += node.advance(1000.0)
    assert events(seen).count(Event.LOAD_STARTED) == 1
    assert len(ended(seen)) == 50


def test_a_leaving_asker_aborts_the_load_and_the_next_one_starts_from_zero() -> None:
    node = NodeModel(NodeLimits())
    node.ask(1, chat(), 0.0)
    node.ask(2, chat(), 0.5)
    assert events(node.leave(1, 1.5)) == [Event.LOAD_ABORTED, Event.LOAD_STARTED]
    effects = node.advance(3.4)
    assert effects == []
    assert events(node.advance(3.5)) == [Event.LOAD_FINISHED]


def test_a_waiting_call_that_leaves_is_never_served() -> None:
    node = NodeModel(NodeLimits())
    for call in (1, 2, 3):
        node.ask(call, chat(), 0.0)
    node.leave(2, 1.0)
    assert set(ended(node.advance(100.0))) == {1, 3}


def test_a_leaving_call_gives_its_slot_to_the_next_at_once() -> None:
    node = NodeModel(NodeLimits(num_parallel=1))
    node.ask(1, chat(output=1000), 0.0)
    node.ask(2, chat(), 0.0)
    node.advance(5.0)
    assert node.leave(1, 5.0) == [Began(2, 5.0, 1)]


def test_the_load_queue_refuses_when_full_and_hot_calls_are_never_refused() -> None:
    node = NodeModel(NodeLimits(max_queue=1))
    node.ask(1, chat(A), 0.0)
    assert node.ask(2, chat(B), 0.0) == []
    assert node.ask(3, chat(C), 0.0) == [Busy(3, 0.0)]
    hot = NodeModel(NodeLimits(max_queue=1))
    hot.ask(0, chat(A, want=Want.LOAD), 0.0)
    hot.advance(2.0)
    refused = [effect for call in range(1, 2000) for effect in hot.ask(call, chat(A), 2.0) if isinstance(effect, Busy)]
    assert refused == []


def test_the_shortest_keep_alive_is_evicted_first_not_the_oldest() -> None:
    node = NodeModel(NodeLimits(max_loaded=2))
    node.ask(1, chat(A, want=Want.LOAD, keep_alive_s=600.0), 0.0)
    node.ask(2, chat(B, want=Want.LOAD, keep_alive_s=60.0), 0.0)
    node.advance(10.0)
    effects = node.ask(3, chat(C), 10.0)
    assert [(e.event, e.blob) for e in effects if isinstance(e, CopyEvent)] == [
        (Event.EVICTED, B.blob),
        (Event.LOAD_STARTED, C.blob),
    ]


def test_an_idle_copy_goes_before_a_busy_one_with_a_shorter_keep_alive() -> None:
    node = NodeModel(NodeLimits(max_loaded=2))
    node.ask(1, chat(A, output=1000, keep_alive_s=10.0), 0.0)
    node.ask(2, chat(B, want=Want.LOAD, keep_alive_s=600.0), 0.0)
    node.advance(10.0)
    node.ask(3, chat(C), 10.0)
    assert set(node.copies) == {A.blob}


def test_a_busy_copy_is_waited_for_and_then_evicted() -> None:
    node = NodeModel(NodeLimits(max_loaded=1))
    node.ask(1, chat(A, output=20), 0.0)
    node.advance(2.5)
    assert node.ask(2, chat(B), 2.5) == []
    effects = node.advance(30.0)
    assert events(effects) == [Event.EVICTED, Event.LOAD_STARTED, Event.LOAD_FINISHED]
    assert set(ended(effects)) == {1, 2}


def test_a_model_needs_its_size_within_four_fifths_of_free_memory_or_an_empty_node() -> None:
    node = NodeModel(NodeLimits(vram_bytes=int(2.2 * GIB)))
    node.ask(1, chat(A), 0.0)
    node.advance(5.0)
    assert events(node.ask(2, chat(B), 5.0)) == [Event.EVICTED, Event.LOAD_STARTED]
    huge = replace(A, loaded_bytes=100 * GIB)
    assert events(NodeModel(NodeLimits(vram_bytes=GIB)).ask(1, chat(huge), 0.0)) == [Event.LOAD_STARTED]


def test_another_num_ctx_reloads_and_one_beyond_training_is_capped() -> None:
    node = NodeModel(NodeLimits(context_length=4096))
    node.ask(1, chat(num_ctx=4096), 0.0)
    node.advance(5.0)
    assert events(node.ask(2, chat(num_ctx=8192), 5.0)) == [Event.RELOADED, Event.LOAD_STARTED]
    node.advance(10.0)
    node.ask(3, chat(num_ctx=10**6), 10.0)
    node.advance(15.0)
    assert events(node.ask(4, chat(num_ctx=A.train_ctx), 15.0)) == []


def test_calls_without_keep_alive_leave_a_pinned_copy_pinned() -> None:
    node = NodeModel(NodeLimits(keep_alive_s=10.0))
    node.ask(1, chat(want=Want.LOAD, keep_alive_s=FOREVER_S), 0.0)
    node.ask(2, chat(), 0.0)
    assert Event.EXPIRED not in events(node.advance(1e9))


def test_keep_alive_counts_from_the_last_call() -> None:
    node = NodeModel(NodeLimits(keep_alive_s=10.0))
    node.ask(1, chat(), 0.0)
    node.advance(2.5)
    assert node.next_event_s() == node.copies[A.blob].expires_s == 12.5
    node.ask(2, chat(prompt=1, output=1), 12.0)
    node.advance(12.1)
    assert events(node.advance(12.5)) == []
    assert events(node.advance(30.0)) == [Event.EXPIRED]


def test_an_unload_answers_at_once_and_waits_for_what_runs() -> None:
    node = NodeModel(NodeLimits())
    node.ask(1, chat(output=10), 0.0)
    node.advance(2.5)
    assert node.ask(2, chat(want=Want.UNLOAD), 2.5) == [Ready(2, 2.5, 0.0)]
    assert A.blob in node.copies
    assert events(node.advance(10.0)) == [Event.EXPIRED]


def test_streams_share_the_rate_by_the_exponent() -> None:
    def duration(streams: int) -> float:
        node = NodeModel(NodeLimits(num_parallel=8))
        node.ask(0, chat(want=Want.LOAD), 0.0)
        node.advance(2.0)
        for call in range(1, streams + 1):
            node.ask(call, chat(prompt=0, output=101), 2.0)
        return max(effect.at_s for effect in ended(node.advance(1e6)).values()) - 2.0

    assert round(duration(1), 6) == 10.0
    assert round(duration(4), 6) == 20.0  # each at 4 ** 0.5 / 4 of the rate


def test_a_known_prefix_is_not_evaluated_again_until_the_copy_goes() -> None:
    node = NodeModel(NodeLimits(keep_alive_s=1e6))
    node.ask(1, chat(prompt=100), 0.0)
    node.advance(100.0)
    node.ask(2, chat(prompt=150), 100.0)
    timing = ended(node.advance(200.0))[2].timing
    assert timing.cached_tokens == 100
    assert round(timing.prefill_s, 6) == 0.5
    node.ask(3, chat(want=Want.UNLOAD), 200.0)
    node.ask(4, chat(prompt=150), 200.0)
    assert ended(node.advance(300.0))[4].timing.cached_tokens == 0


def test_the_answer_of_the_turn_before_is_part_of_the_next_prefix() -> None:
    node = NodeModel(NodeLimits())
    node.ask(1, chat(prompt=3, answer=(3, 4, 5)), 0.0)
    node.advance(50.0)
    node.ask(2, chat(prompt=8), 50.0)
    assert ended(node.advance(100.0))[2].timing.cached_tokens == 6


def test_a_dying_runner_takes_all_its_calls_and_nobody_elses() -> None:
    node = NodeModel(NodeLimits(num_parallel=2))
    for call in (1, 2, 3):
        node.ask(call, chat(A, output=100), 0.0)
    node.ask(4, chat(B, output=100), 0.0)
    node.advance(6.0)
    effects = node.kill(A.blob, 6.0)
    assert {effect.call for effect in effects if isinstance(effect, Died)} == {1, 2, 3}
    assert 4 in ended(node.advance(100.0))


def test_tokens_can_be_left_out_without_changing_when_a_call_ends() -> None:
    def end(*, every_token: bool) -> float:
        node = NodeModel(NodeLimits(num_parallel=2))
        node.ask(1, chat(output=50, every_token=every_token), 0.0)
        node.ask(2, chat(output=20, every_token=every_token, start=500), 0.0)
        return ended(node.advance(1e6))[1].at_s

    assert round(end(every_token=True), 6) == round(end(every_token=False), 6)


OPERATION = st.one_of(
    st.tuples(
        st.just("ask"),
        st.sampled_from([A, B, C]),
        st.sampled_from([None, None, 4096, 8192]),
        st.sampled_from([None, None, 0.0, 5.0, FOREVER_S]),
        st.integers(0, 12),
    ),
    st.tuples(st.just("leave"), st.integers(0, 40)),
    st.tuples(st.just("wait"), st.floats(0.0, 6.0)),
    st.tuples(st.just("kill"), st.sampled_from([A, B, C])),
)


@settings(max_examples=150, deadline=None)
@given(
    operations=st.lists(OPERATION, max_size=40),
    slots=st.integers(1, 3),
    max_loaded=st.integers(1, 3),
    vram=st.sampled_from([0, 3 * GIB]),
)
def test_every_call_ends_once_and_no_limit_is_ever_passed(
    operations: list[tuple[object, ...]], slots: int, max_loaded: int, vram: int
) -> None:
    limits = NodeLimits(num_parallel=slots, max_loaded=max_loaded, vram_bytes=vram, max_queue=8)
    node = NodeModel(limits)
    now_s, calls, left, endings = 0.0, 0, set[int](), list[int]()
    loading = 0

    def check(effects: list[Effect]) -> None:
        nonlocal loading
        for effect in effects:
            if isinstance(effect, Ended | Busy | Ready | Died):
                endings.append(effect.call)
            if isinstance(effect, CopyEvent):
                loading += (effect.event is Event.LOAD_STARTED) - (
                    effect.event in (Event.LOAD_FINISHED, Event.LOAD_ABORTED)
                )
                assert loading in (0, 1)
            if isinstance(effect, Began):
                assert effect.running <= slots
        assert all(copy.running <= slots for copy in node.copies.values())
        assert len(node.copies) + (node.load is not None) <= max_loaded
        assert all(not copy.waiting or copy.running == slots for copy in node.copies.values())
        assert node.queued <= limits.max_queue + 1

    for operation in operations:
        match operation:
            case ("ask", Weights() as weights, num_ctx, keep_alive_s, int(output)):
                work = chat(weights, output=output, num_ctx=num_ctx, keep_alive_s=keep_alive_s, start=calls * 50)
                check(node.ask(calls, work, now_s))
                calls += 1
            case ("leave", int(call)):
                left.add(call)
                check(node.leave(call, now_s))
            case ("wait", float(pause_s)):
                now_s += pause_s
                check(node.advance(now_s))
            case ("kill", Weights() as weights):
                check(node.kill(weights.blob, now_s))
    check(node.advance(now_s + 1e6))
    assert len(endings) == len(set(endings))
    assert set(endings) | left >= set(range(calls)), "a call was forgotten"
