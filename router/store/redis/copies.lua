-- Copies of models on nodes: what is ready, what is gated, which have a free slot (store/copies.py, store/nodes.py).
--
-- `free` is the index of copies with room: by model key and node. Every change of a copy ends in `refresh`.

-- `copies` go by place: node and weights.
local models = records('models') -- of a key: how many copies stand for it, how many of them are ready, and free
local serving = records('serving') -- of a key and a node: the weights

function Copies.place_of(node, weights)
  return node .. '\0' .. weights
end

function Copies.changed(copy)
  copies.set(Copies.place_of(copy.node, copy.weights), copy)
end

function Copies.is_busy(copy)
  return copy.state == 'loading' or copy.state == 'unloading'
end

local function passes(gate, leases)
  return gate == 'open' or (gate == 'half_open' and leases == 0)
end

local function has_room(copy)
  if copy.state ~= 'ready' or copy.leases >= copy.slots then
    return false
  end
  local node = nodes.get(copy.node)
  return passes(copy.gate, copy.leases) and passes(node.gate, node.leases)
end

-- Whether a ticket, or all of a kind, may use this copy, free or not. An unknown context fits everybody.
function Copies.fits(copy, wants)
  if wants.excluded[copy.node] or (wants.names_no_ctx and copy.named_ctx > 0) then
    return false
  end
  return copy.num_ctx == 0 or copy.num_ctx >= wants.num_ctx
end

local function count(key, field, change)
  local model = models.get(key) or { nodes = 0, ready = 0, free = 0 }
  model[field] = model[field] + change
  if model.nodes > 0 then
    models.set(key, model)
  else
    models.drop(key)
    call('ZADD', K.stale, 0, key)
  end
end

local function set_free(copy, keys, is_free)
  for _, key in ipairs(keys) do
    call(is_free and 'ZADD' or 'ZREM', K.free, unpack(is_free and { 0, key .. '\0' .. copy.node } or { key .. '\0' .. copy.node }))
    count(key, 'free', is_free and 1 or -1)
  end
end

function Copies.refresh(copy)
  local is_free = has_room(copy)
  if is_free ~= copy.free then
    copy.free = is_free
    Copies.changed(copy)
    set_free(copy, copy.keys, is_free)
  end
end

function Copies.of_node(node)
  local found = {}
  for weights in pairs(node.copies) do
    found[#found + 1] = copies.get(Copies.place_of(node.name, weights))
  end
  return found
end

function Copies.refresh_all(list)
  for _, copy in ipairs(list) do
    Copies.refresh(copy)
  end
end

function Copies.node(name)
  return nodes.get(name)
    or nodes.set(name, {
      name = name, incarnation = 0, uid = '', past_uid = '', past = 0, down = false, gate = 'open', until_s = FAR_S,
      leases = 0, copies = {},
    })
end

function Copies.stand_for(copy, keys)
  local ready = copy.state == 'ready' and 1 or 0
  if copy.free then
    set_free(copy, copy.keys, false)
  end
  for _, key in ipairs(copy.keys) do
    serving.drop(key .. '\0' .. copy.node)
    count(key, 'ready', -ready)
    count(key, 'nodes', -1)
  end
  copy.keys = keys
  for _, key in ipairs(keys) do
    serving.set(key .. '\0' .. copy.node, copy.weights)
    count(key, 'nodes', 1)
    count(key, 'ready', ready)
  end
  if copy.free then
    set_free(copy, keys, true)
  end
  Copies.changed(copy)
end

-- What is remembered of what is gone

function Copies.forget_copy(copy)
  local place, node = Copies.place_of(copy.node, copy.weights), nodes.get(copy.node)
  Copies.stand_for(copy, {})
  call('ZREM', K.closed, 'copy\0' .. place)
  call('ZREM', K.absent, place)
  node.copies[copy.weights] = nil
  nodes.set(node.name, node)
  copies.drop(place)
end

function Copies.note_absent(copy)
  local place = Copies.place_of(copy.node, copy.weights)
  if copy.leases > 0 then
    call('ZREM', K.absent, place) -- with its last lease it comes here again
    return
  end
  call('ZADD', K.absent, mark(), place)
  while call('ZCARD', K.absent) > ABSENT_COPIES_MAX do
    Copies.forget_copy(copies.get(call('ZPOPMIN', K.absent)[1]))
  end
end

function Copies.forget_node(node)
  for _, copy in ipairs(Copies.of_node(node)) do
    Copies.forget_copy(copy)
  end
  call('ZREM', K.closed, 'node\0' .. node.name)
  call('ZREM', K.down, node.name)
  nodes.drop(node.name)
end

function Copies.at(name, weights)
  local place = Copies.place_of(name, weights)
  local copy = copies.get(place)
  if not copy then
    local node = Copies.node(name)
    node.copies[weights] = true
    nodes.set(name, node)
    copy = copies.set(place, {
      node = name, weights = weights, keys = {}, state = 'on_disk', slots = 0, num_ctx = 0, named_ctx = 0,
      seen = -FAR_S, leases = 0, gate = 'open', until_s = FAR_S, loader = '', since = 0, free = false,
    })
    Copies.note_absent(copy)
  end
  return copy
end

function Copies.set_state(copy, state)
  local was = copy.state
  local change = (state == 'ready' and 1 or 0) - (was == 'ready' and 1 or 0)
  for _, key in ipairs(change ~= 0 and copy.keys or {}) do
    count(key, 'ready', change)
  end
  copy.state = state
  Copies.changed(copy)
  local place = Copies.place_of(copy.node, copy.weights)
  if Copies.is_busy(copy) then
    call('SADD', K.busy, place)
  elseif was ~= state then
    call('SREM', K.busy, place)
  end
  Copies.refresh(copy)
  if state == 'on_disk' then
    Copies.note_absent(copy)
  elseif was == 'on_disk' then
    call('ZREM', K.absent, place)
  end
end

function Copies.weights_at(node, key)
  return serving.get(key .. '\0' .. node)
end

-- Slots

local function free_at(key, node, wants)
  local weights = serving.get(key .. '\0' .. node)
  local copy = weights and copies.get(Copies.place_of(node, weights))
  return copy and copy.free and Copies.fits(copy, wants) and copy or nil
end

-- The less loaded of two free copies drawn at random: near to the least loaded, without a scan.
local function spread(key, free, wants)
  local from = call('ZLEXCOUNT', K.free, '-', '(' .. key .. '\0')
  local function at(index)
    local rank = from + index % free
    return free_at(key, last_part(call('ZRANGE', K.free, rank, rank)[1]), wants)
  end
  local start = math.floor(math.random() * free)
  for step = 0, free - 1 do
    local copy = at(start + step)
    if copy then
      local other = at(math.floor(math.random() * free))
      return other and other.leases * copy.slots < copy.leases * other.slots and other or copy
    end
  end
end

-- A free copy that fits, preferred nodes first, and the key it was found under.
function Copies.pick(ticket, wants)
  for _, key in ipairs(ticket.keys) do
    local model = ticket.preferred[1] and models.get(key)
    for i = 1, model and model.free > 0 and math.min(#ticket.preferred, PREFERRED_MAX) or 0 do
      local copy = free_at(key, ticket.preferred[i], wants)
      if copy then
        return copy, key
      end
    end
  end
  for _, key in ipairs(ticket.keys) do
    local model = models.get(key)
    local copy = model and model.free > 0 and spread(key, model.free, wants)
    if copy then
      return copy, key
    end
  end
end

function Copies.is_any_ready(keys)
  for _, key in ipairs(keys) do
    local model = models.get(key)
    if model and model.ready > 0 then
      return true
    end
  end
  return false
end

function Copies.is_served(key)
  return models.get(key) ~= nil
end

-- Answers the copies that it may have freed: a half-open node lets one lease through for all of its copies.
function Copies.count_lease(copy, change)
  local node = nodes.get(copy.node)
  copy.leases, node.leases = copy.leases + change, node.leases + change
  assert(copy.leases >= 0, 'released twice or never occupied')
  Copies.changed(copy)
  nodes.set(node.name, node)
  local place = Copies.place_of(copy.node, copy.weights)
  if copy.leases > 0 then
    call('HSET', K.occupancy, place, copy.leases)
  else
    call('HDEL', K.occupancy, place)
  end
  local freed = node.gate == 'open' and { copy } or Copies.of_node(node)
  Copies.refresh_all(freed)
  if copy.state == 'on_disk' then
    Copies.note_absent(copy)
  end
  return freed
end
