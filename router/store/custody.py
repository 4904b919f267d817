"""What replicas lose and bring: grants that nobody acknowledged, replicas that fell silent, left, or came back.

Each function changes the ledger and answers the copies that it may have freed: handing them on is the last thing in a
step, when all of its changes are made.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.fleet.tickets import UNACKED_S, Lease, Ticket
from router.store.answers import Refused
from router.store.ledger import Ledger
from router.store.nodes import CopyEntry


def lapse(ledger: Ledger) -> list[CopyEntry]:
    """Takes back the grants that nobody acknowledged. Their tickets come first, once their replica is heard again."""
    freed: list[CopyEntry] = []
    while ledger.unclaimed:
        entry = next(iter(ledger.unclaimed.values()))
        if ledger.answering_s - entry.granted_s < UNACKED_S:
            break
        ledger.unheard.add(entry.replica)
        freed += ledger.take_back(entry)
    return freed


def drop(ledger: Ledger, replica: str) -> list[CopyEntry]:
    """All that a replica holds, and its places."""
    ledger.unheard.discard(replica)
    ledger.copies.end_loads(lambda copy: copy.loader == replica)
    return _drop_others(ledger, replica, (), ())


def adopt(ledger: Ledger, replica: str, leases: Sequence[Lease], tickets: Sequence[Ticket]) -> list[CopyEntry]:
    """Takes over what the replica says it holds, also above slots and limits, and drops what it does not name."""
    ledger.unheard.discard(replica)
    freed = _drop_others(ledger, replica, leases, tickets)
    for lease in leases:
        freed += _restore(ledger, replica, lease)
    for ticket in tickets:
        entry = ledger.tickets.get(ticket.id)
        refusal = ledger.left.get(ticket.id)
        if refusal is not None:
            ledger.news.append((replica, Refused(ticket.id, refusal)))  # the answer that told it was lost
        elif entry is None and ticket.id not in ledger.left:
            entry = ledger.enter(ticket, replica, ledger.past.get(ticket.id))
            entry.team.book(entry.estimate)
            ledger.queues.stand(entry, ledger.now_s)
        elif entry is not None and entry.lease is None:
            ledger.queues.renew(entry, ticket)
    return freed


def _drop_others(ledger: Ledger, replica: str, leases: Sequence[Lease], tickets: Sequence[Ticket]) -> list[CopyEntry]:
    held = {lease.id for lease in leases}
    standing = {ticket.id for ticket in tickets} | {lease.ticket for lease in leases}
    freed: list[CopyEntry] = []
    for entry in [entry for entry in ledger.tickets.values() if entry.replica == replica]:
        if entry.lease is not None and entry.lease.id in held:
            ledger.unclaimed.pop(entry.lease.id, None)
            continue
        is_gone = entry.ticket.id not in standing
        if entry.lease is not None:
            # What it used nobody can tell any more: the estimate stands.
            freed += ledger.release(entry) if is_gone else ledger.take_back(entry)
        elif is_gone:
            ledger.queues.step_out(entry)
            entry.team.book(-entry.estimate)
        if is_gone:
            del ledger.tickets[entry.ticket.id]
    return freed


def _restore(ledger: Ledger, replica: str, lease: Lease) -> Sequence[CopyEntry]:
    """A lease that the store lost, or that it passed on while the replica was silent."""
    if lease.id in ledger.leases:
        return ()
    # Its ticket may have been refused in the line that it was put back to: who serves it has the last word.
    ledger.left.drop(lease.ticket)
    freed: Sequence[CopyEntry] = ()
    entry = ledger.tickets.get(lease.ticket)
    if entry is None:
        ticket = Ticket(
            *(lease.ticket, (lease.model,), lease.attempt), team=lease.team, estimate_tokens=lease.estimate_tokens
        )
        entry = ledger.enter(ticket, replica, ledger.past.get(lease.ticket))
        entry.team.book(entry.estimate)
    elif entry.lease is not None:
        freed = ledger.release(entry)
        ledger.uncharge(entry)
    else:
        ledger.queues.step_out(entry)
    copy = ledger.copies.copy(lease.node, lease.weights)
    ledger.queues.charge(entry, copy, lease.model)
    ledger.hold(entry, lease, copy)
    return freed
