-- What replicas lose and bring: grants that nobody acknowledged, replicas that fell silent, left, or came back
-- (store/custody.py). Each function answers the copies that it may have freed: handing them on comes last in a step.

-- Takes back the grants that nobody acknowledged. Their tickets come first, once their replica is heard again.
function Custody.lapse()
  local freed = {}
  while true do
    local member = call('ZRANGE', K.unclaimed, 0, 0)[1]
    local ticket = member and tickets.get(last_part(member))
    if not ticket or meta.answering - ticket.granted < UNACKED_S then
      return freed
    end
    meta.unheard[ticket.replica] = true
    append(freed, Ledger.take_back(ticket))
  end
end

local function drop_others(replica, leases, wanted)
  local held, standing, freed = {}, {}, {}
  for _, lease in ipairs(leases) do
    held[lease.id], standing[lease.ticket] = true, true
  end
  for _, ticket in ipairs(wanted) do
    standing[ticket.id] = true
  end
  for _, ticket in ipairs(Ledger.held_by(replica)) do
    local is_gone = not standing[ticket.id]
    if ticket.lease and held[ticket.lease.id] then
      Ledger.claim(ticket)
    else
      if ticket.lease then -- what it used nobody can tell any more: the estimate stands
        append(freed, (is_gone and Ledger.release or Ledger.take_back)(ticket))
      elseif is_gone then
        Ledger.step_out(ticket)
        Teams.book(Teams.of(ticket.team), -ticket.estimate)
      end
      if is_gone then
        Ledger.forget_ticket(ticket)
      end
    end
  end
  return freed
end

-- All that a replica holds, and its places.
function Custody.drop(replica)
  meta.unheard[replica] = nil
  Copies.end_loads(function(copy)
    return copy.loader == replica
  end)
  return drop_others(replica, {}, {})
end

-- A lease that the store lost, or that it passed on while the replica was silent.
local function restore(replica, lease)
  local ticket, freed = tickets.get(lease.ticket), {}
  if ticket and ticket.lease and ticket.lease.id == lease.id then
    return freed
  end
  -- Its ticket may have been refused in the line that it was put back to: who serves it has the last word.
  left.drop(lease.ticket)
  if not ticket then
    ticket = Ledger.enter({
      id = lease.ticket, targets = { lease.model }, attempt = lease.attempt, preferred = {}, excluded = {}, num_ctx = 0,
      names_no_ctx = false, keep_alive_s = false, team = lease.team, priority = false, estimate = lease.estimate,
    }, replica, past.get(lease.ticket))
    Teams.book(Teams.of(ticket.team), ticket.estimate)
  elseif ticket.lease then
    freed = Ledger.release(ticket)
    Ledger.uncharge(ticket)
  else
    Ledger.step_out(ticket)
  end
  Ledger.charge(ticket, Copies.at(lease.node, lease.weights), lease.model)
  Ledger.hold(ticket, {
    id = lease.id, attempt = lease.attempt, model = lease.model, node = lease.node, weights = lease.weights,
    num_ctx = lease.num_ctx,
  })
  return freed
end

-- Takes over what the replica says it holds, also above slots and limits, and drops what it does not name.
function Custody.adopt(replica, leases, wanted)
  meta.unheard[replica] = nil
  local freed = drop_others(replica, leases, wanted)
  for _, lease in ipairs(leases) do
    append(freed, restore(replica, lease))
  end
  for _, each in ipairs(wanted) do
    local ticket, gone = tickets.get(each.id), left.get(each.id)
    if gone and gone.refusal then
      news[#news + 1] = { replica, 'refused', each.id, cjson.decode(gone.refusal) } -- the answer that told it was lost
    elseif not ticket and not gone then
      ticket = Ledger.enter(each, replica, past.get(each.id))
      Teams.book(Teams.of(ticket.team), ticket.estimate)
      Ledger.stand(ticket)
    elseif ticket and Ledger.is_waiting(ticket) then
      Ledger.renew(ticket, each)
    end
  end
  return freed
end
