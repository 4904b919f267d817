-- What is asked of the ledger (store/ledger.py). Values are arrays that begin with what they are.

function Ledger.lease_value(ticket, lease, allowed)
  return {
    'lease', lease.id, ticket.id, lease.attempt, lease.model, lease.node, lease.weights, lease.num_ctx, ticket.team,
    ticket.estimate, allowed or false,
  }
end

local function place_value(ticket, allowed)
  local key = ticket.keys[1]
  local line = Lines.get(key)
  local position, rate = Lines.ahead(ticket) + 1, Drain.per_s(line)
  local reason = Copies.is_any_ready(ticket.keys) and 'slot' or 'copy'
  if Teams.of(ticket.team).held then
    reason = 'team'
  end
  return { 'place', key, position, line.depth, rate > 0 and number(position / rate) or false, reason, allowed or false }
end

-- What goes out here needs no acknowledgement.
local function answer(ticket)
  if Ledger.is_waiting(ticket) then
    Ledger.seek({ ticket })
  end
  if Ledger.is_waiting(ticket) then
    return place_value(ticket)
  end
  if ticket.granted then
    Ledger.claim(ticket)
    for i = #news, 1, -1 do
      if news[i][4] == ticket.lease.id then
        table.remove(news, i) -- made in this very step: told once
      end
    end
  end
  return Ledger.lease_value(ticket, ticket.lease)
end

-- Its place as it comes, or, with `before`, the one it had. `wanted` has the fields of a Ticket.
function Ledger.enter(wanted, replica, before)
  local team, ticket, seen = Teams.of(wanted.team), wanted, {}
  if before then
    past.drop(wanted.id)
    ticket.arrival, ticket.arrived, ticket.due = before.arrival, before.arrived, true
  else
    meta.arrivals = meta.arrivals + 1
    ticket.arrival, ticket.arrived, ticket.due = meta.arrivals, meta.now, false
  end
  ticket.replica, ticket.passes, ticket.cost, ticket.keys = replica, 0, math.max(1, wanted.estimate), {}
  for _, key in ipairs(wanted.targets) do
    if not seen[key] then
      seen[key] = true
      ticket.keys[#ticket.keys + 1] = key
    end
  end
  ticket.targets = nil
  local allowed, asked = team.limits.priority, wanted.priority
  ticket.band = 2 - ((not asked or asked > allowed) and allowed or asked)
  call('ZADD', K.held, 0, replica .. '\0' .. ticket.id)
  return tickets.set(ticket.id, ticket)
end

-- Out of this line; whoever stands in no other is refused, and that was nothing to its team.
local function expel(ticket, key, refusal)
  if #ticket.keys > 1 then
    Lines.remove(key, ticket)
    for i, other in ipairs(ticket.keys) do
      if other == key then
        table.remove(ticket.keys, i)
        Lines.comes_first(i == 1 and ticket.keys[1])
        break
      end
    end
    Ledger.changed_ticket(ticket)
    return false
  end
  Ledger.step_out(ticket)
  Ledger.forget_ticket(ticket)
  left.add(ticket.id, { refusal = cjson.encode(refusal) }) -- as text: it may have members that are null
  Teams.cancel(Teams.of(ticket.team), ticket.estimate)
  news[#news + 1] = { ticket.replica, 'refused', ticket.id, refusal }
  return true
end

-- A place for a newcomer, in the lines that have room, else in the first where another team has too much; else why not.
local function make_room(ticket)
  local team, open = Teams.of(ticket.team), {}
  for _, key in ipairs(ticket.keys) do
    if not Lines.is_full(key) then
      open[#open + 1] = key
    end
  end
  if team.limits.waiting and team.waiting >= team.limits.waiting then
    team.refused = team.refused + 1
    Teams.changed(team)
    local wait_s = Lines.come_back_s(ticket.keys[1], team.refused)
    return { 'refused', ticket.id, { 'team_full', team.limits.waiting, wait_s } }
  end
  if open[1] then
    ticket.keys = open
    return nil
  end
  for _, key in ipairs(ticket.keys) do
    local victim = Lines.victim(key, ticket)
    if victim then
      ticket.keys = { key }
      expel(victim, key, { 'full', Lines.refuse_one(key) })
      return nil
    end
  end
  return { 'full', Lines.refuse_one(ticket.keys[1]) }
end

local function take_again(ticket, wanted)
  if wanted.attempt < ticket.attempt then
    return { 'left' }
  end
  if wanted.attempt > ticket.attempt then
    if Ledger.is_waiting(ticket) then
      Ledger.renew(ticket, wanted)
    else -- its give_back was lost: a ticket has one lease at a time
      ticket.attempt, ticket.preferred, ticket.excluded = wanted.attempt, wanted.preferred, wanted.excluded
      Ledger.offer(Ledger.take_back(ticket))
    end
  end
  return answer(ticket)
end

function Ledger.take(replica, wanted)
  local known = tickets.get(wanted.id)
  if known then
    return take_again(known, wanted)
  end
  local before = past.get(wanted.id)
  if left.get(wanted.id) or (before and wanted.attempt <= before.attempt) then
    return { 'left' }
  end
  local team = Teams.of(wanted.team)
  if before then
    Teams.book(team, wanted.estimate)
  else
    local limited = Budget.admit(team.budget, wanted.estimate)
    Teams.changed(team)
    if limited then
      return { 'refused', wanted.id, limited }
    end
  end
  local ticket = Ledger.enter(wanted, replica, before)
  local allowed = not before and Budget.left(team.budget, ticket.estimate) or nil
  local copy, key = Ledger.pick(ticket)
  if copy then -- without a wait: nobody else who may use this copy is there
    Ledger.served(ticket, copy, key)
    Ledger.lend(ticket, copy, key)
    return Ledger.lease_value(ticket, ticket.lease, allowed)
  end
  local refused = not before and make_room(ticket)
  if refused then
    Teams.cancel(team, ticket.estimate)
    Ledger.forget_ticket(ticket)
    return refused
  end
  Ledger.stand(ticket)
  return place_value(ticket, allowed)
end

-- Full lines are passed over: the ticket has its place already.
function Ledger.widen(id, targets)
  local ticket = tickets.get(id)
  if not ticket then
    return { 'left' }
  end
  if Ledger.is_waiting(ticket) then
    local known = {}
    for _, key in ipairs(ticket.keys) do
      known[key] = true
    end
    for _, key in ipairs(targets) do
      if not known[key] and not Lines.is_full(key) then
        known[key] = true
        Lines.add(key, ticket)
        ticket.keys[#ticket.keys + 1] = key
      end
    end
    Ledger.changed_ticket(ticket)
  end
  return answer(ticket)
end

function Ledger.place_of(id)
  local ticket = tickets.get(id)
  return ticket and Ledger.is_waiting(ticket) and place_value(ticket) or false
end

function Ledger.leave(id, tokens)
  local ticket = tickets.get(id)
  left.add(id, {})
  past.drop(id)
  if not ticket then
    return
  end
  if Ledger.is_waiting(ticket) then
    Ledger.step_out(ticket)
    Ledger.forget_ticket(ticket)
    Teams.book(Teams.of(ticket.team), tokens - ticket.estimate)
  else
    local freed = Ledger.release(ticket)
    Ledger.forget_ticket(ticket)
    Ledger.settle(ticket, tokens)
    Ledger.offer(freed)
  end
end

local function leased(lease_id)
  local ticket = tickets.get(string.match(lease_id, '^(.*)/%d+/%d+$') or '')
  return ticket and ticket.lease and ticket.lease.id == lease_id and ticket or nil
end

function Ledger.give_back(lease_id, tokens)
  local ticket = leased(lease_id)
  if not ticket then
    return
  end
  past.add(ticket.id, { attempt = ticket.attempt, arrival = ticket.arrival, arrived = ticket.arrived })
  local freed = Ledger.release(ticket)
  Ledger.forget_ticket(ticket)
  Ledger.settle(ticket, tokens)
  Ledger.offer(freed)
end

-- Answers those that had lapsed before: their tickets stand in line again, and their slots may be another's.
function Ledger.acknowledge(replica, lease_ids)
  local lapsed = {}
  for _, id in ipairs(lease_ids) do
    local ticket = leased(id)
    if ticket and ticket.replica == replica then
      Ledger.claim(ticket)
    else
      lapsed[#lapsed + 1] = id
    end
  end
  return lapsed
end

-- Those who stand in this line only; the others just leave it.
function Ledger.refuse(key, refusal)
  local refused = 0
  for _, ticket in ipairs(Lines.standing(key)) do
    if expel(ticket, key, refusal) then
      refused = refused + 1
    end
  end
  return refused
end

function Ledger.heard(replica) -- a replica that let a grant lapse is there again
  meta.unheard[replica] = nil
  local found = {}
  for _, ticket in ipairs(Ledger.held_by(replica)) do
    if Ledger.is_waiting(ticket) then
      found[#found + 1] = ticket
    end
  end
  Ledger.seek(found)
end

function Ledger.settled()
  meta.settling = false
  Ledger.seek_all()
end

function Ledger.forget() -- what is kept for a time only
  left.forget()
  past.forget()
  Copies.end_loads(function(copy)
    return meta.answering - copy.since >= LOAD_S_MAX
  end)
  Lines.forget(Copies.is_served)
  Teams.forget()
end
