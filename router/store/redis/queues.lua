-- The tickets of all lines stand in one sorted set, `queue`, by line, lane, team, kind and order number. A line's record
-- counts them and names the first of each kind. Lane 0 is for tickets that were served before; 1 to 3 are the bands.

-- Kinds: what decides which copies a ticket may use, so that a copy is asked once for all tickets alike.

local kinds

each_run(function()
  kinds = {}
end)

function Kinds.name(ticket)
  local plain = ticket.names_no_ctx and '1' or '0'
  return table.concat(ticket.excluded, '\2') .. '\3' .. fmt('%d', ticket.num_ctx) .. '\3' .. plain
end

function Kinds.get(text)
  local found = kinds[text]
  if not found then
    local excluded, ctx, plain = string.match(text, '^(.*)\3(%d+)\3(%d)$')
    found = { excluded = {}, num_ctx = tonumber(ctx), names_no_ctx = plain == '1', count = 0 }
    for node in string.gmatch(excluded, '[^\2]+') do
      found.excluded[node], found.count = true, found.count + 1
    end
    kinds[text] = found
  end
  return found
end

-- Order numbers, the oldest first

function Queues.queue_of(key, lane, team, kind_text)
  return key .. '\0' .. lane .. '\0' .. team .. '\0' .. kind_text
end

function Queues.at_order(order)
  return '\0' .. fmt('%015.0f', order + SERVED_BEFORE)
end

function Queues.order_of(member)
  return tonumber(string.sub(member, -15)) - SERVED_BEFORE
end

function Lines.ticket_at(order)
  local text = fmt('%.0f', order)
  return tickets.get(call('ZRANGEBYSCORE', K.waiting, text, text)[1])
end

-- The first orders of a kind, less those of replicas that let a grant lapse and have not been heard since.
function Queues.first_orders(prefix, limit)
  local found, from, to, at = {}, nil, nil, 0
  from, to = span(prefix)
  local all_heard = next(meta.unheard) == nil
  repeat
    local chunk = call('ZRANGEBYLEX', K.queue, from, to, 'LIMIT', at, all_heard and limit or 64)
    for _, member in ipairs(chunk) do
      local order = Queues.order_of(member)
      if #found < limit and (all_heard or not meta.unheard[Lines.ticket_at(order).replica]) then
        found[#found + 1] = order
      end
    end
    at = at + 64
  until all_heard or #found == limit or #chunk < 64
  return found
end

-- Of a team in a lane, those whose kind fits, the first `limit`.
function Queues.fitting(key, lane, name, fits, limit)
  local found = {}
  for text, head in pairs(lines.get(key).lanes[lane + 1].teams[name].kinds) do
    if fits(Kinds.get(text)) then
      if limit == 1 and next(meta.unheard) == nil then
        found[#found + 1] = head
      else
        for _, order in ipairs(Queues.first_orders(Queues.queue_of(key, lane, name, text), limit)) do
          found[#found + 1] = order
        end
      end
    end
  end
  table.sort(found)
  return found
end

function Queues.head_of(queue)
  local head = math.huge
  for _, order in pairs(queue.kinds) do
    head = math.min(head, order)
  end
  return head
end

-- Teams of a lane that are not held back, the fairest first.
function Queues.ranked(key, lane)
  local ranks, group = {}, nil
  for name, queue in pairs(lines.get(key).lanes[lane + 1].teams) do
    local team = Teams.of(name)
    if not team.held then
      group = group or Shares.group(key)
      local tag = lane == 0 and 0 or Shares.tag(group, lane - 1, team)
      ranks[#ranks + 1] = { tag = tag, head = Queues.head_of(queue), name = name, queue = queue, team = team }
    end
  end
  if ranks[2] then
    table.sort(ranks, function(a, b)
      if a.tag ~= b.tag then
        return a.tag < b.tag
      end
      if a.head ~= b.head then
        return a.head < b.head
      end
      return a.name < b.name
    end)
  end
  return ranks
end

function Queues.add_order(key, lane, name, text, order)
  local queue = lines.get(key).lanes[lane + 1].teams[name]
  if not queue.kinds[text] or order < queue.kinds[text] then
    queue.kinds[text] = order
  end
  call('ZADD', K.queue, 0, Queues.queue_of(key, lane, name, text) .. Queues.at_order(order))
  queue.count = queue.count + 1
end

function Queues.remove_order(key, lane, name, text, order)
  local queue, prefix = lines.get(key).lanes[lane + 1].teams[name], Queues.queue_of(key, lane, name, text)
  assert(call('ZREM', K.queue, prefix .. Queues.at_order(order)) == 1, 'removed twice, or never stood here')
  if queue.kinds[text] == order then
    local head = members(K.queue, prefix, 1)[1]
    queue.kinds[text] = head and Queues.order_of(head) or nil
  end
  queue.count = queue.count - 1
end

function Queues.before(key, lane, name, order)
  local sum = 0
  for text in pairs(lines.get(key).lanes[lane + 1].teams[name].kinds) do
    local prefix = Queues.queue_of(key, lane, name, text)
    sum = sum + call('ZLEXCOUNT', K.queue, '[' .. prefix .. '\0', '(' .. prefix .. Queues.at_order(order))
  end
  return sum
end
