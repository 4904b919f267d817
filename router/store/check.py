"""What must be true of a Book between steps, by scans: for tests and the simulator, never in production."""

from __future__ import annotations

from router.fleet.node import CopyState
from router.store.book import STREAM_MAXLEN, Book
from router.store.copies import ABSENT_COPIES_MAX, DOWN_NODES_MAX, Copies
from router.store.ledger import LEFT_IDS_MAX, PAST_IDS_MAX, Ledger
from router.store.nodes import has_room


def invariants(book: Book) -> None:
    """Leases above a copy's slots are no error in a single state: slots shrink, and hello restores."""
    ledger = book.ledger
    _check_tickets(book, ledger)
    _check_leases(ledger)
    _check_lines(ledger)
    _check_copies(ledger.copies)
    _check_nobody_waits_in_vain(ledger)
    _check_bounds(book)


def _check_tickets(book: Book, ledger: Ledger) -> None:
    for ticket_id, entry in ledger.tickets.items():
        assert entry.ticket.id == ticket_id
        assert entry.replica in book.replicas, "held for a replica that is gone"
        is_waiting = ledger.waiting.get(entry.arrival) is entry
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
    for key, line in ledger.lines.items():
        standing = sorted(arrival for arrival, entry in ledger.waiting.items() if key in entry.keys)
        assert line.order == standing
    for entry in ledger.waiting.values():
        assert entry.keys, "waits in no line"


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
                assert (name in serving.places) == copy.is_free
    for key, serving in copies.serving.items():
        assert all(key in copy.keys for copy in serving.nodes.values())
        assert {copy.node.name: index for index, copy in enumerate(serving.free)} == serving.places


def _check_nobody_waits_in_vain(ledger: Ledger) -> None:
    if ledger.is_settling:
        return
    for entry in ledger.waiting.values():
        if entry.replica in ledger.unheard:
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
