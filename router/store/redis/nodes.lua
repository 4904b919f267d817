-- What is seen of nodes, and said of them: reports, starts, loads, gates (store/copies.py).

-- Reports

local function restart(node, incarnation) -- nothing that was in its memory is there any more; leases end with their calls
  node.incarnation, node.down = incarnation, false
  nodes.set(node.name, node)
  call('ZREM', K.down, node.name)
  for _, copy in ipairs(Copies.of_node(node)) do
    Copies.set_state(copy, 'on_disk')
  end
end

local function is_news(copy, seen, replica)
  if Copies.is_busy(copy) then -- while it loads /api/ps does not list it; only who holds that connection knows
    return not seen.is_probe and replica == copy.loader and seen.state ~= 'loading' and seen.state ~= 'unloading'
  end
  return seen.seen_at >= copy.seen
end

-- On one node a key stands for one set of weights: the latest report takes it from the others.
local function set_keys(copy, keys)
  if table.concat(keys, '\0') == table.concat(copy.keys, '\0') then
    return
  end
  for _, key in ipairs(keys) do
    local weights = Copies.weights_at(copy.node, key)
    if weights and weights ~= copy.weights then
      local other, kept = copies.get(Copies.place_of(copy.node, weights)), {}
      for _, name in ipairs(other.keys) do
        if name ~= key then
          kept[#kept + 1] = name
        end
      end
      Copies.stand_for(other, kept)
    end
  end
  Copies.stand_for(copy, keys)
end

-- Takes the report over unless it is stale or the copy belongs to a loader. Answers the copy as it stands.
function Copies.report(seen, replica)
  local node = Copies.node(seen.node)
  if seen.incarnation > node.incarnation then
    restart(node, seen.incarnation)
  end
  local copy = Copies.at(seen.node, seen.weights)
  if seen.incarnation < node.incarnation or node.down or not is_news(copy, seen, replica) then
    return copy
  end
  -- A time ahead of ours would lock out everybody else's reports.
  copy.seen = math.max(copy.seen, math.min(seen.seen_at, meta.now))
  set_keys(copy, seen.keys)
  copy.slots, copy.num_ctx, copy.named_ctx = seen.slots, seen.num_ctx, seen.named_ctx
  Copies.set_state(copy, seen.state == 'ready' and 'ready' or 'on_disk')
  return copy
end

function Copies.incarnate(name, uid)
  local node = Copies.node(name)
  if uid ~= '' and uid == node.past_uid then
    return node.past
  end
  local is_other = uid ~= '' and node.uid ~= '' and uid ~= node.uid
  if is_other then
    node.past_uid, node.past = node.uid, node.incarnation
  end
  if is_other or node.down or node.incarnation == 0 then
    restart(node, node.incarnation + 1)
  end
  node.uid = uid ~= '' and uid or node.uid
  nodes.set(name, node)
  return node.incarnation
end

function Copies.drop_node(name, incarnation)
  local node = Copies.node(name)
  if incarnation < node.incarnation then
    return
  end
  restart(node, incarnation)
  node.down = true
  call('ZADD', K.down, mark(), name)
  if call('ZCARD', K.down) > DOWN_NODES_MAX then
    for _, other in ipairs(call('ZRANGE', K.down, 0, FORGET_MAX - 1)) do
      if nodes.get(other).leases == 0 then
        return Copies.forget_node(nodes.get(other))
      end
    end
  end
end

-- Loads

function Copies.begin(name, weights, replica, is_load)
  local copy = Copies.at(name, weights)
  local node = nodes.get(name)
  local is_loading = false
  for _, other in ipairs(is_load and Copies.of_node(node) or {}) do
    is_loading = is_loading or other.state == 'loading'
  end
  if node.down or Copies.is_busy(copy) or is_loading then
    return false
  end
  copy.loader, copy.since = replica, meta.answering
  Copies.set_state(copy, is_load and 'loading' or 'unloading')
  return true
end

function Copies.end_loads(is_over) -- the next probe says what came of them
  for _, place in ipairs(call('SMEMBERS', K.busy)) do
    local copy = copies.get(place)
    if is_over(copy) then
      Copies.set_state(copy, 'on_disk')
    end
  end
end

-- Gates

local function behind(member)
  local what, name, weights = string.match(member, '^(%a+)%z([^%z]*)%z?(.*)$')
  if what == 'node' then
    local node = Copies.node(name)
    return node, Copies.of_node(node), nodes.set
  end
  local copy = Copies.at(name, weights)
  return copy, { copy }
end

local function next_gate()
  local first = call('ZRANGE', K.closed, 0, 0, 'WITHSCORES')
  meta.gate_due = first[2] and tonumber(first[2]) or FAR_S
end

local function set_gate(gated, gate)
  gated.gate = gate
  if gated.weights then
    Copies.changed(gated)
  else
    nodes.set(gated.name, gated)
  end
end

-- A breaker whose time is over becomes half-open: one call at a time may try. Drains end by word only.
function Copies.open_due()
  local opened = {}
  for _, member in ipairs(call('ZRANGEBYSCORE', K.closed, '-inf', number(meta.now))) do
    call('ZREM', K.closed, member)
    local gated, list = behind(member)
    set_gate(gated, 'half_open')
    for _, copy in ipairs(list) do
      opened[#opened + 1] = copy
    end
  end
  next_gate()
  Copies.refresh_all(opened)
  return opened
end

function Copies.gate(name, weights, gate, until_s)
  local member = weights and 'copy\0' .. Copies.place_of(name, weights) or 'node\0' .. name
  local gated, list = behind(member)
  gated.until_s = until_s
  set_gate(gated, gate)
  if gate == 'closed' then
    call('ZADD', K.closed, number(until_s), member)
  else
    call('ZREM', K.closed, member)
  end
  local opened = Copies.open_due()
  Copies.refresh_all(list)
  for _, copy in ipairs(list) do
    opened[#opened + 1] = copy
  end
  return opened
end
