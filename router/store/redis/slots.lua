-- Tickets, leases and lines over copies: who gets which slot (store/ledger.py, store/queues.py).
--
-- Kept true after every step: nobody waits while a free copy fits, but for tickets of replicas that let a grant lapse, of
-- teams that run as many calls as they may, and while the store settles.

local freed_teams -- in this step: they were held back by their own limit

each_run(function()
  freed_teams = {}
end)

function Ledger.changed_ticket(ticket)
  tickets.set(ticket.id, ticket)
end

function Ledger.is_waiting(ticket)
  return not ticket.lease
end

function Ledger.held_by(replica)
  local found = {}
  for i, member in ipairs(members(K.held, replica)) do
    found[i] = tickets.get(last_part(member))
  end
  return found
end

function Ledger.forget_ticket(ticket)
  call('ZREM', K.held, ticket.replica .. '\0' .. ticket.id)
  tickets.drop(ticket.id)
end

-- Standing in line

function Ledger.stand(ticket)
  ticket.kind, ticket.lane, ticket.order = Kinds.name(ticket), 1 + ticket.band, ticket.arrival
  if ticket.due then
    ticket.lane, ticket.order = 0, ticket.arrival - SERVED_BEFORE
  end
  call('ZADD', K.waiting, fmt('%.0f', ticket.order), ticket.id)
  meta.waiting = meta.waiting + 1
  local team = Teams.of(ticket.team)
  team.waiting = team.waiting + 1
  Teams.changed(team)
  for _, key in ipairs(ticket.keys) do
    Lines.add(key, ticket)
  end
  Ledger.changed_ticket(ticket)
end

function Ledger.step_out(ticket)
  call('ZREM', K.waiting, ticket.id)
  meta.waiting = meta.waiting - 1
  local team = Teams.of(ticket.team)
  team.waiting = team.waiting - 1
  team.refused = team.waiting > 0 and team.refused or 0
  Teams.changed(team)
  for _, key in ipairs(ticket.keys) do
    Lines.remove(key, ticket)
  end
end

-- As its next attempt wants it, where it stands.
function Ledger.renew(ticket, wanted)
  ticket.attempt, ticket.preferred, ticket.excluded = wanted.attempt, wanted.preferred, wanted.excluded
  local old = ticket.kind
  ticket.kind = Kinds.name(ticket)
  for _, key in ipairs(ticket.keys) do
    Lines.change(key, ticket.lane, ticket.team, ticket.order, old, ticket.kind)
  end
  Ledger.changed_ticket(ticket)
end

-- Slots to tickets, tickets to slots

function Ledger.hold(ticket, lease)
  ticket.lease = lease
  Ledger.changed_ticket(ticket)
  Teams.began(Teams.of(ticket.team))
  Copies.count_lease(Copies.at(lease.node, lease.weights), 1)
end

function Ledger.lend(ticket, copy, key)
  meta.leases = meta.leases + 1
  local lease = {
    -- The ticket's id is in it: after a fail-over the numbers come again, for other tickets.
    id = fmt('%s/%d/%d', ticket.id, ticket.attempt, meta.leases),
    attempt = ticket.attempt, model = key, node = copy.node, weights = copy.weights, num_ctx = copy.num_ctx,
  }
  Ledger.hold(ticket, lease)
end

function Ledger.claim(ticket)
  if ticket.granted then
    ticket.granted = nil
    call('ZREM', K.unclaimed, ticket.replica .. '\0' .. ticket.id)
    Ledger.changed_ticket(ticket)
  end
end

-- Takes the lease from a ticket, which then is nowhere. Answers the copies that may be free now.
function Ledger.release(ticket)
  local lease, team = ticket.lease, Teams.of(ticket.team)
  Ledger.claim(ticket)
  ticket.lease = nil
  Ledger.changed_ticket(ticket)
  if Teams.ended(team) then
    freed_teams[#freed_teams + 1] = team
  end
  return Copies.count_lease(Copies.at(lease.node, lease.weights), -1)
end

local EVERYWHERE = 'team' -- no number of a front

local function pay(ticket, tokens)
  if ticket.payer == EVERYWHERE then
    Shares.charge(Teams.of(ticket.team), tokens)
  elseif ticket.payer then
    Shares.charge_at(ticket.payer, ticket.band, Teams.of(ticket.team), tokens)
  end
end

-- For a slot of this copy. One that no other team waits for takes nothing from anybody: it counts in this line only, so
-- that whoever comes there next has the next turn.
function Ledger.charge(ticket, copy, key)
  ticket.payer = nil
  for _, name in ipairs(copy.keys) do
    if Lines.is_waited_for(name, ticket.team) then
      ticket.payer = EVERYWHERE
    end
  end
  local team = Teams.of(ticket.team)
  if ticket.payer then
    Shares.serve(team, ticket.cost)
  elseif not ticket.due then
    ticket.payer = Shares.group(key)
    Shares.enter(ticket.payer, ticket.band, team)
    Shares.charge_at(ticket.payer, ticket.band, team, ticket.cost)
  end
end

-- It stands in no line and got a slot that nobody waited for who may use it.
function Ledger.served(ticket, copy, key)
  if not ticket.due then
    local group = Shares.group(key)
    Shares.advance(group, ticket.band, Shares.enter(group, ticket.band, Teams.of(ticket.team)))
  end
  Ledger.charge(ticket, copy, key)
end

function Ledger.uncharge(ticket)
  pay(ticket, -ticket.cost)
  ticket.payer = nil
end

-- As if the lease had not been lent; its ticket stands first.
function Ledger.take_back(ticket)
  local freed = Ledger.release(ticket)
  Ledger.uncharge(ticket)
  ticket.due = true
  Ledger.stand(ticket)
  return freed
end

function Ledger.settle(ticket, tokens) -- what the call really used, in place of its estimate
  local team = Teams.of(ticket.team)
  pay(ticket, math.max(COST_MIN_TOKENS, tokens) - ticket.cost)
  Teams.book(team, tokens - ticket.estimate)
end

local function prefers(ticket, node)
  return ticket.preferred[1] == node
end

-- Whose turn it is among those who may use this copy, over all its names.
local function turn_at(copy)
  local function fits(each)
    return Copies.fits(copy, each)
  end
  local best
  for _, key in ipairs(copy.keys) do
    local line = Lines.get(key)
    local choice = line and line.depth > 0 and Lines.first(key, fits)
    if choice and (not best or Lines.precedes(choice, best)) then
      best = choice
    end
  end
  if not best then
    return nil
  end
  local fairest = Lines.ticket_at(best.order)
  local chosen, overtaken
  if best.lane > 0 and not prefers(fairest, copy.node) then
    chosen, overtaken = Lines.look_ahead(best, fits, function(ticket)
      return prefers(ticket, copy.node)
    end)
  end
  return { ticket = chosen or fairest, overtaken = overtaken or {}, choice = best, copy = copy }
end

local function grant(turn)
  local ticket, choice, copy = turn.ticket, turn.choice, turn.copy
  for _, before in ipairs(turn.overtaken) do
    before.passes = before.passes + 1
    Ledger.changed_ticket(before)
  end
  if choice.lane > 0 then
    Shares.advance(Shares.group(choice.key), ticket.band, choice.tag)
  end
  Lines.served(choice.key, choice.lane, copy.keys)
  Ledger.charge(ticket, copy, choice.key)
  Ledger.step_out(ticket)
  local team = Teams.of(ticket.team)
  team.refused = math.max(0, team.refused - 1)
  Teams.changed(team)
  local named = {}
  for _, key in ipairs(copy.keys) do
    named[key] = true
  end
  for _, key in ipairs(ticket.keys) do
    if named[key] then
      Ledger.lend(ticket, copy, key)
      break
    end
  end
  Lines.granted(ticket.lease.model)
  ticket.granted = meta.answering
  Ledger.changed_ticket(ticket)
  call('ZADD', K.unclaimed, meta.leases, ticket.replica .. '\0' .. ticket.id)
  news[#news + 1] = { ticket.replica, 'lease', ticket, ticket.lease.id }
end

function Ledger.pick(ticket)
  if meta.settling or Teams.of(ticket.team).held or meta.unheard[ticket.replica] then
    return nil
  end
  return Copies.pick(ticket, Kinds.get(Kinds.name(ticket)))
end

function Ledger.seek_one(ticket)
  local copy = Ledger.pick(ticket)
  local turn = copy and turn_at(copy)
  if not turn then
    return false
  end
  grant(turn)
  return true
end

-- Finds the slots that these may use. Who gets them is fairness's choice, these or others.
function Ledger.seek(list)
  table.sort(list, function(a, b)
    return a.order < b.order
  end)
  for _, ticket in ipairs(list) do
    while Ledger.is_waiting(ticket) and Ledger.seek_one(ticket) do
    end
  end
end

function Ledger.seek_all()
  local found = {}
  for i, id in ipairs(meta.waiting > 0 and call('ZRANGE', K.waiting, 0, -1) or {}) do
    found[i] = tickets.get(id)
  end
  Ledger.seek(found)
end

-- The first of each kind in each of a team's lines: if none of these gets a slot nobody of it does.
local function heads(team)
  local orders, found = {}, {}
  for _, key in ipairs(lines.ids()) do
    for _, lane in ipairs(lines.get(key).lanes) do
      local queue = lane.teams[team.name]
      for _, order in pairs(queue and queue.kinds or {}) do
        orders[order] = true
      end
    end
  end
  for order in pairs(orders) do
    found[#found + 1] = Lines.ticket_at(order)
  end
  table.sort(found, function(a, b)
    if a.lane ~= b.lane then
      return a.lane < b.lane
    end
    return a.order < b.order
  end)
  return found
end

local function serve_freed(team)
  repeat
    local granted = false
    for _, ticket in ipairs(team.held and {} or heads(team)) do
      granted = granted or Ledger.seek_one(ticket)
    end
  until not granted
end

-- Gives the free slots of these copies to those whose turn it is. Where copies share what is free the oldest goes first.
-- A team that was held back until now looks for a slot in all its lines.
function Ledger.offer(list)
  if meta.settling or meta.waiting == 0 then
    freed_teams = {}
    return
  end
  repeat
    local first
    for _, copy in ipairs(list) do
      local turn = copy.free and turn_at(copy)
      if turn and (not first or turn.ticket.order < first.ticket.order) then
        first = turn
      end
    end
    if first then
      grant(first)
    end
  until not first
  while freed_teams[1] do
    serve_freed(table.remove(freed_teams))
  end
end
