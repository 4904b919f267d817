"""The board on real servers: of two words on a topic the later counts, and each is heard once by whoever did not say
it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from router.fleet.words import Heard, Word
from router.store.answers import Caller, Limits
from router.store.redis import codec
from tests.contracts.redis_harness import RedisBook
from tests.fakes import redis_server

POOLS = count()


class Board:
    """Two replicas, a and b, at one book."""

    def __init__(self, book: RedisBook) -> None:
        self.book = book
        self.now_s = 1000.0
        sessions = {name: book.hello(name, -1, (), (), self.now_s, greeting=1).value for name in "ab"}
        self.callers = {name: Caller(name, session) for name, session in sessions.items()}
        self.read = dict.fromkeys("ab", 0)

    def exchange(self, name: str, *words: Word) -> Heard:
        told = self.book._do(self.callers[name], codec.board(self.read[name], words), self.now_s)
        self.read[name], heard = told.value
        return heard

    def heard(self, name: str) -> list[tuple[str, str]]:
        return [(word.topic, word.text) for word in self.exchange(name).words]


@pytest.fixture(params=["valkey", "redis"])
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    binary = redis_server.valkey_binary() if request.param == "valkey" else redis_server.redis_binary()
    if binary is None:
        pytest.skip(redis_server.NO_REDIS)
    with redis_server.shared(binary).client() as client:
        yield Board(RedisBook(client, f"board-{next(POOLS)}", Limits(), 0.0))


def test_a_word_is_heard_once_by_the_others_and_who_lives_by_all(board: Board) -> None:
    assert set(board.exchange("a", Word("t", 999.0, "hot")).replicas) == {"a", "b"}
    assert board.heard("b") == [("t", "hot")]
    assert board.heard("b") == []
    assert board.heard("a") == [], "it knows its own"


def test_a_replica_that_joins_hears_all_there_is_at_once(board: Board) -> None:
    for i in range(50):
        board.exchange("a", Word(f"t{i}", 999.0, "x"))
    assert len(board.heard("b")) == 50


def test_the_later_word_counts_whoever_comes_last(board: Board) -> None:
    board.exchange("a", Word("t", 998.0, "new"))
    board.exchange("b", Word("t", 997.0, "old"))
    assert board.heard("b") == [], "read with the refusal of its own"
    board.read["b"] = 0
    assert board.heard("b") == [("t", "new")]


def test_a_time_ahead_of_the_server_s_locks_nobody_out(board: Board) -> None:
    board.exchange("a", Word("t", 9e9, "mad"))
    board.now_s += 1
    board.exchange("b", Word("t", board.now_s, "sane"))
    assert board.heard("a") == [("t", "sane")]


def test_the_same_word_again_is_no_news(board: Board) -> None:
    board.exchange("a", Word("t", 998.0, "same"))
    assert board.heard("b") == [("t", "same")]
    board.exchange("a", Word("t", 999.0, "same"))
    assert board.heard("b") == []


def test_what_is_too_much_for_one_answer_comes_in_several(board: Board) -> None:
    for i in range(5):
        board.exchange("a", Word(f"t{i}", 999.0, "x" * 100_000))
    sizes = []
    while True:
        heard = board.exchange("b")
        sizes.append(len(heard.words))
        if not heard.has_more:
            break
    assert sizes == [2, 2, 1]


def test_one_word_that_is_too_large_for_an_answer_comes_all_the_same(board: Board) -> None:
    board.exchange("a", Word("t", 999.0, "x" * 300_000))
    assert len(board.heard("b")) == 1


def test_what_nobody_tells_again_is_forgotten_in_an_hour(board: Board) -> None:
    board.exchange("a", Word("kept", 999.0, "x"), Word("left", 999.0, "x"))
    for _ in range(3700):  # the time that counts is one in which the server answers: a beat a step at most
        board.now_s += 1
        board.exchange("a", *([Word("kept", board.now_s, "x")] if board.now_s % 1200 == 0 else []))
        board.exchange("b")
    board.read["b"] = 0
    assert board.heard("b") == [("kept", "x")]
    assert board.book.client.zcard(f"{board.book.prefix}board:order") == 1
    assert board.book.client.zcard(f"{board.book.prefix}board:fading") == 1


def test_a_board_that_has_lost_what_was_read_says_so_and_begins_again(board: Board) -> None:
    board.exchange("a", Word("t", 999.0, "x"))
    board.read["b"] = 77
    heard = board.exchange("b")
    assert heard.is_anew
    assert [word.topic for word in heard.words] == ["t"]


def test_every_key_of_the_board_expires(board: Board) -> None:
    board.exchange("a", Word("t", 999.0, "x"))
    board.now_s += 61
    board.book.beat(board.callers["a"], (), board.now_s)
    board.now_s += 61
    board.exchange("a")
    board.book.beat(board.callers["a"], (), board.now_s)
    for key in ("board", "board:order", "board:fading"):
        assert board.book.client.ttl(f"{board.book.prefix}{key}") > 0
