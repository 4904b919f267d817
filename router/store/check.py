"""What must be true of a Book between steps, by scans: for tests and the simulator, never in production."""

from __future__ import annotations

from collections import Counter

from router.fleet.node import CopyState
from router.store.book import Book
from router.store.copies import ABSENT_COPIES_MAX, DOWN_NODES_MAX, Copies
from router.store.ledger import LEFT_IDS_MAX, PAST_IDS_MAX, Ledger
from router.store.nodes import has_room
from router.store.replica import STREAM_MAXLEN


def invariants(book: Book) -> None:
    """Leases above a copy's slots are no error in a single state: slots shrink, and hello restores."""
    ledger = book.ledger
    _check_tickets(book, ledger)
    _check_leases(ledger)
    _check_lines(ledger)
    _check_teams(ledger)
    _check_copies(ledger.copies)
    _check_nobody_waits_in_vain(ledger)
    _check_bounds(book)


def _check_tickets(book: Book, ledger: Ledger) -> None:
    for ticket_id, entry in ledger.tickets.items():
        assert entry.ticket.id == ticket_id
        assert entry.replica in book.replicas, "held for a replica that is gone"
        is_waiting = ledger.waiting.get(entry.order) is entry
        assert is_waiting != (entry.lease is not None), "a ticket waits or is served, never both and never neither"
        assert ticket_id not in ledger.left, "left, and still here"
    assert len(ledger.tickets) == len(ledger.waiting) + len(ledger.leases)


def _check_leases(ledger: Ledger) -> None:
    counted: dict[tuple[str, str], int] = {}
    for lease_id, entry in ledger.leases.items():
        assert entry.lease is not None
        assert entry.copy is not None
        assert entry.lease.id == lease_id
        place = (entry.copy.node.name, entry.copy.weights)
        assert place == (entry.lease.node, entry.lease.weights)
        counted[place] = counted.get(place, 0) + 1
    assert ledger.copies.occupancy == counted
    assert ledger.unclaimed.keys() <= ledger.leases.keys(), "a grant that is no lease"


def _check_lines(ledger: Ledger) -> None:
    queues = ledger.queues
    for key, line in queues.lines.items():
        standing = sorted(order for order, entry in queues.waiting.items() if key in entry.keys)
        assert sorted(line.queue.orders()) == standing
        assert line.depth == len(standing)
        assert line.queue.counts == Counter(entry.team.account.name for entry in queues.standing(key))
    for entry in queues.waiting.values():
        assert entry.keys, "waits in no line"


def _check_teams(ledger: Ledger) -> None:
    queues = ledger.queues
    running = Counter(entry.ticket.team for entry in ledger.leases.values())
    waiting = Counter(entry.ticket.team for entry in queues.waiting.values())
    ranked = {id(queue) for line in queues.lines.values() for queue in line.queue.ranked()}
    for name, team in queues.teams.by_name.items():
        limit = team.limits.max_concurrent
        assert (team.running, team.waiting) == (running[name], waiting[name])
        assert team.account.is_held == (limit is not None and team.running >= limit)
        for queue in team.account.queues:
            assert (id(queue) in ranked) != team.account.is_held, "held back and offered, or neither"
            assert queue.rank == (None if team.account.is_held else (queue.tag, queue.head, name))
    for line in queues.lines.values():
        for queue in line.queue.ranked():
            standing = queue.standing
            alike = [other for other in queue.account.queues if other.standing is standing]
            assert standing is None or standing.waiting == sum(other.count for other in alike)


def _check_copies(copies: Copies) -> None:
    for name, node in copies.nodes.items():
        assert node.leases == sum(copy.leases for copy in node.copies.values())
        for weights, copy in node.copies.items():
            place = (name, weights)
            assert copy.leases == copies.occupancy.get(place, 0)
            assert copy.is_free == has_room(copy)
            assert (place in copies.busy) == (copy.state in (CopyState.LOADING, CopyState.UNLOADING))
            for key in copy.keys:
                serving = copies.serving[key]
                assert serving.nodes[name] is copy
                assert serving.ready == sum(c.state is CopyState.READY for c in serving.nodes.values())
                assert (name in serving.places) == copy.is_free
    for key, serving in copies.serving.items():
        assert all(key in copy.keys for copy in serving.nodes.values())
        assert {copy.node.name: index for index, copy in enumerate(serving.free)} == serving.places


def _check_nobody_waits_in_vain(ledger: Ledger) -> None:
    if ledger.is_settling:
        return
    for entry in ledger.waiting.values():
        if entry.replica in ledger.unheard or entry.team.account.is_held:
            continue
        for key in entry.keys:
            serving = ledger.copies.serving.get(key)
            for copy in serving.nodes.values() if serving is not None else ():
                assert not (copy.is_free and copy.fits(entry.ticket)), f"{entry.ticket.id} waits beside a free slot"


def _check_bounds(book: Book) -> None:
    ledger = book.ledger
    assert len(ledger.left) <= LEFT_IDS_MAX
    assert len(ledger.past) <= PAST_IDS_MAX
    assert ledger.copies.absent_count <= ABSENT_COPIES_MAX
    assert ledger.copies.down_count <= DOWN_NODES_MAX
    assert all(len(replica.stream) <= STREAM_MAXLEN for replica in book.replicas.values())
