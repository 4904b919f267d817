-- Lines: who waits for a model key, and how fast it moves (store/lines.py).

local DRAIN_WINDOW_S = 30

-- Grants per second over the last DRAIN_WINDOW_S, counted per second: {second, grants, second, grants, ..}

function Drain.forget(line)
  local buckets = line.buckets
  while buckets[1] and buckets[1] < meta.now - DRAIN_WINDOW_S do
    line.total = line.total - table.remove(buckets, 2)
    table.remove(buckets, 1)
  end
end

function Drain.count(line)
  local buckets, second = line.buckets, math.floor(meta.now)
  if buckets[#buckets - 1] == second then
    buckets[#buckets] = buckets[#buckets] + 1
  else
    buckets[#buckets + 1], buckets[#buckets + 2] = second, 1
  end
  line.total = line.total + 1
  Drain.forget(line)
end

function Drain.per_s(line)
  Drain.forget(line)
  return line.total / math.min(DRAIN_WINDOW_S, math.max(1, meta.now - line.began))
end

-- Standing in line

function Lines.get(key)
  return lines.get(key)
end

function Lines.of(key)
  local line = lines.get(key)
  if line then
    return line
  end
  line = { max = Limits.line(key), began = meta.now, buckets = {}, total = 0, refused = 0, depth = 0, others = 0, counts = {}, keeps = {} }
  line.lanes = {}
  for i = 1, 4 do
    line.lanes[i] = { since = 0, passed = 0, teams = {} }
  end
  call('ZADD', K.stale, 0, key)
  return lines.set(key, line)
end

function Lines.changed(key)
  lines.set(key, lines.get(key))
end

function Lines.is_full(key)
  local line = Lines.of(key)
  return line.depth >= line.max
end

local function count(counts, name, change)
  local value = (counts[name] or 0) + change
  counts[name] = value > 0 and value or nil
end

function Lines.add(key, ticket)
  local line = Lines.of(key)
  if line.depth == 0 then
    Drain.forget(line)
    line.began = line.buckets[1] and line.began or meta.now
  end
  if ticket.lane > 0 then
    local group, team = Shares.group(key), Teams.of(ticket.team)
    Shares.enter(group, ticket.lane - 1, team)
    Shares.count(group, ticket.lane - 1, team, 1)
  end
  local lane = line.lanes[ticket.lane + 1]
  if not lane.teams[ticket.team] then
    if next(lane.teams) == nil then
      lane.since, lane.passed = meta.now, 0
    end
    lane.teams[ticket.team] = { count = 0, kinds = {} }
  end
  Queues.add_order(key, ticket.lane, ticket.team, ticket.kind, ticket.order)
  count(line.counts, ticket.team, 1)
  if ticket.keep_alive_s then
    count(line.keeps, number(ticket.keep_alive_s), 1)
  end
  line.depth = line.depth + 1
  line.others = line.others + (ticket.keys[1] ~= key and 1 or 0)
  lines.set(key, line)
end

function Lines.remove(key, ticket)
  local line = lines.get(key)
  local lane = line.lanes[ticket.lane + 1]
  Queues.remove_order(key, ticket.lane, ticket.team, ticket.kind, ticket.order)
  if lane.teams[ticket.team].count == 0 then
    lane.teams[ticket.team] = nil
  end
  if ticket.lane > 0 then
    Shares.count(Shares.group(key), ticket.lane - 1, Teams.of(ticket.team), -1)
  end
  count(line.counts, ticket.team, -1)
  if ticket.keep_alive_s then
    count(line.keeps, number(ticket.keep_alive_s), -1)
  end
  line.depth = line.depth - 1
  line.others = line.others - (ticket.keys[1] ~= key and 1 or 0)
  if line.depth == 0 then
    line.refused = 0
    call('ZADD', K.stale, 0, key)
  end
  lines.set(key, line)
end

-- A ticket may use other copies now; it stands where it stood.
function Lines.change(key, lane, name, order, old, new)
  Queues.remove_order(key, lane, name, old, order)
  Queues.add_order(key, lane, name, new, order)
  Lines.changed(key)
end

-- A ticket has left its first line: this is its first now.
function Lines.comes_first(key)
  if key then
    lines.get(key).others = lines.get(key).others - 1
    Lines.changed(key)
  end
end

-- By another team than this one, and not only by those that are held back.
function Lines.is_waited_for(key, name)
  local line = lines.get(key)
  for team in pairs(line and line.counts or {}) do
    if team ~= name and not Teams.of(team).held then
      return true
    end
  end
  return false
end

function Lines.granted(key) -- one of this line got a slot of this key: room for one of those who were sent away
  local line = Lines.of(key)
  Drain.count(line)
  line.refused = math.max(0, line.refused - 1)
  lines.set(key, line)
end

-- Who has too much of it

-- Who leaves a full line for a newcomer: the newest of the team most over its share, unless that is the newcomer's own.
function Lines.victim(key, newcomer)
  local line, most, name = lines.get(key), 0, nil
  for team, waiting in pairs(line.counts) do
    local share = waiting / Teams.of(team).limits.weight
    if share > most or (share == most and team > name) then
      most, name = share, team
    end
  end
  if not name or most <= ((line.counts[newcomer.team] or 0) + 1) / Teams.of(newcomer.team).limits.weight then
    return nil
  end
  local newest
  for lane = 1, 3 do
    local queue = line.lanes[lane + 1].teams[name]
    for text in pairs(queue and queue.kinds or {}) do
      local from, to = span(Queues.queue_of(key, lane, name, text))
      local order = Queues.order_of(call('ZREVRANGEBYLEX', K.queue, to, from, 'LIMIT', 0, 1)[1])
      newest = newest and math.max(newest, order) or order
    end
  end
  return newest and Lines.ticket_at(newest)
end

-- Retry-After (policy/advice.py): the k-th who was sent away waits for k grants.
function Lines.come_back_s(key, grants)
  local rate = Drain.per_s(lines.get(key))
  local wait = math.min(60 / 1.2, grants / (rate > 0 and rate or 1))
  return number(math.max(1, wait * (0.8 + 0.4 * math.random())))
end

function Lines.refuse_one(key)
  local line = lines.get(key)
  line.refused = line.refused + 1
  lines.set(key, line)
  return Lines.come_back_s(key, line.refused)
end

-- Looking

-- Everybody of a line, the oldest first.
function Lines.standing(key)
  local found = {}
  for _, member in ipairs(members(K.queue, key)) do
    found[#found + 1] = Queues.order_of(member)
  end
  table.sort(found)
  for i, order in ipairs(found) do
    found[i] = Lines.ticket_at(order)
  end
  return found
end

-- What the tickets of a line ask for: those whose first line it is, where there are any, looked at one by one; else, and
-- mostly, all of them, kind by kind.
local function asked_in(key, line)
  local found = {}
  if line.others > 0 and line.others < line.depth then
    for _, ticket in ipairs(Lines.standing(key)) do
      if ticket.keys[1] == key then
        found[#found + 1] = { Kinds.get(ticket.kind), ticket.arrived, ticket.keep_alive_s }
      end
    end
    return found
  end
  local keep_alive_s = false
  for text in pairs(line.keeps) do
    keep_alive_s = math.max(keep_alive_s or tonumber(text), tonumber(text))
  end
  for _, record in ipairs(line.lanes) do
    for _, queue in pairs(record.teams) do
      for text, head in pairs(queue.kinds) do
        found[#found + 1] = { Kinds.get(text), Lines.ticket_at(head).arrived, keep_alive_s }
      end
    end
  end
  return found
end

function Lines.view(key)
  local line = lines.get(key)
  local num_ctx, names_no_ctx, oldest, keep_alive_s, excluded, by_all = 0, false, math.huge, false, {}, {}
  local asked = asked_in(key, line)
  for _, each in ipairs(asked) do
    local kind, arrived, keep_s = each[1], each[2], each[3]
    num_ctx, names_no_ctx = math.max(num_ctx, kind.num_ctx), names_no_ctx or kind.names_no_ctx
    oldest = math.min(oldest, arrived)
    keep_alive_s = keep_s and math.max(keep_alive_s or keep_s, keep_s) or keep_alive_s
    for node in pairs(kind.excluded) do
      excluded[node] = (excluded[node] or 0) + 1
      if excluded[node] == #asked then
        by_all[#by_all + 1] = node
      end
    end
  end
  return {
    key, line.depth, number(meta.now - oldest), num_ctx, keep_alive_s and number(keep_alive_s) or false, line.max,
    number(Drain.per_s(line)), by_all, names_no_ctx, line.counts, line.others,
  }
end

function Lines.views()
  local views = {}
  for _, key in ipairs(lines.ids()) do
    if lines.get(key).depth > 0 then
      views[#views + 1] = Lines.view(key)
    end
  end
  return views
end

function Lines.apply_limits()
  for _, key in ipairs(lines.ids()) do
    lines.get(key).max = Limits.line(key)
    Lines.changed(key)
  end
end

-- Lines that are empty and have not moved lately, and fronts that nobody stands before. `stale` names what to look at.
function Lines.forget(is_served)
  for _, key in ipairs(call('ZRANGEBYSCORE', K.stale, '-inf', number(meta.now), 'LIMIT', 0, FORGET_MAX)) do
    local line = lines.get(key)
    if line and line.depth == 0 and Drain.per_s(line) == 0 then
      lines.drop(key)
      line = nil
    end
    if line and line.depth == 0 then
      call('ZADD', K.stale, number(line.buckets[#line.buckets - 1] + DRAIN_WINDOW_S), key)
    else
      call('ZREM', K.stale, key)
      if not line and not is_served(key) then
        Shares.forget_key(key)
      end
    end
  end
end
