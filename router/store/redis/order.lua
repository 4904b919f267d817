-- Whose turn it is in a line, and where one stands (policy/fair_queue.py).

local AGING_S, AGING_GRANTS, LOOKAHEAD_TOKENS = 10, 4, 8192

-- Whose turn it is

-- Smaller is next, over all lines that one copy serves.
function Lines.precedes(a, b)
  for _, field in ipairs({ 'precedence', 'since', 'tag', 'head', 'name', 'order', 'lane' }) do
    if a[field] ~= b[field] then
      return a[field] < b[field]
    end
  end
  return false
end

function Lines.first(key, fits)
  local line, best = lines.get(key), nil
  for lane = 0, 3 do
    local record = line.lanes[lane + 1]
    local aged = lane > 0 and record.passed >= AGING_GRANTS and meta.now - record.since >= AGING_S
    if next(record.teams) ~= nil and not (best and (best.lane == 0 or not aged)) then
      for _, rank in ipairs(Queues.ranked(key, lane)) do
        local order = Queues.fitting(key, lane, rank.name, fits, 1)[1]
        if order then
          local found = { tag = rank.tag, head = rank.head, name = rank.name, order = order, lane = lane, key = key }
          found.precedence = aged and 1 or (lane == 0 and 0 or 1 + lane)
          found.since = aged and record.since or 0
          if not best or Lines.precedes(found, best) then
            best = found
          end
          break
        end
      end
    end
  end
  return best
end

-- Of the first LOOKAHEAD tickets of this choice's lane in fair order, within LOOKAHEAD_TOKENS, the first that pleases, and
-- those before it, each of which is overtaken LOOKAHEAD times at most.
function Lines.look_ahead(choice, fits, pleases)
  local front, tag_max = {}, choice.tag + LOOKAHEAD_TOKENS
  for _, rank in ipairs(Queues.ranked(choice.key, choice.lane)) do
    if rank.tag > tag_max or #front == LOOKAHEAD then
      break
    end
    local orders = Queues.fitting(choice.key, choice.lane, rank.name, fits, LOOKAHEAD)
    if orders[1] then
      front[#front + 1] = { tag = rank.tag, head = rank.head, orders = orders, at = 1, weight = rank.team.limits.weight }
    end
  end
  local overtaken = {}
  for _ = 1, LOOKAHEAD do
    local best
    for _, each in ipairs(front) do
      local is_less = each.orders[each.at] and each.tag <= tag_max
      if is_less and (not best or each.tag < best.tag or (each.tag == best.tag and each.head < best.head)) then
        best = each
      end
    end
    if not best then
      return nil
    end
    local ticket = Lines.ticket_at(best.orders[best.at])
    if pleases(ticket) then
      return ticket, overtaken
    end
    if ticket.passes >= LOOKAHEAD then
      return nil
    end
    overtaken[#overtaken + 1] = ticket
    best.at = best.at + 1
    best.tag, best.head = best.tag + ticket.cost / best.weight, best.orders[best.at]
  end
end

-- A slot that these lines wait for went to this lane of `key`.
function Lines.served(key, lane, keys)
  for _, other in ipairs(keys) do
    local line = lines.get(other)
    if line and lane > 0 and lane < 3 then
      for lower = lane + 1, 3 do
        line.lanes[lower + 1].passed = line.lanes[lower + 1].passed + 1
      end
      Lines.changed(other)
    end
  end
  local own = lines.get(key).lanes[lane + 1]
  own.since, own.passed = meta.now, 0
  Lines.changed(key)
end

-- Where one stands

-- How many come before, if every call cost what this one does and no band aged. Held-back teams do not count.
function Lines.ahead(ticket)
  local key, lane = ticket.keys[1], ticket.lane
  local team = Teams.of(ticket.team)
  local own = Queues.before(key, lane, ticket.team, ticket.order)
  local sum = own
  for above = 0, lane - 1 do
    for _, rank in ipairs(Queues.ranked(key, above)) do
      sum = sum + rank.queue.count
    end
  end
  local own_tag = lane == 0 and 0
    or Shares.tag(Shares.group(key), lane - 1, team) + own * ticket.cost / team.limits.weight
  for _, rank in ipairs(Queues.ranked(key, lane)) do
    if rank.name ~= ticket.team then
      if lane == 0 then
        sum = sum + Queues.before(key, lane, rank.name, ticket.order)
      elseif rank.tag <= own_tag then
        -- Its calls before that tag, and the one at that tag if its head came first.
        local calls = (own_tag - rank.tag) * rank.team.limits.weight / ticket.cost
        local whole = math.floor(calls)
        if whole < calls or rank.head < ticket.order then
          whole = whole + 1
        end
        sum = sum + math.min(whole, rank.queue.count)
      end
    end
  end
  return sum
end
