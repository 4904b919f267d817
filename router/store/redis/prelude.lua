-- Steps of the store over Redis: the same decisions as store/ledger.py, and the words of ARCHITECTURE.md.
--
-- One run of these functions carries what one replica's turn of the loop brought, a command at a time; each is one atomic
-- step. What a step reads of a hash it reads once, what it changed is written once, at the end. docs/store.md lists the
-- keys. A queue, an index or a memory is a sorted set: everything a call does costs O(log n).
--
-- The functions stay in the server, for runs of all pools there: what a run keeps in variables begins anew in each,
-- whatever became of the one before. `each_run` is the only place for that.

local call, pack, unpacked, fmt -- while it loads functions the server knows nothing but how to register them

local FAR_S = 1e18 -- never; JSON has no infinity
local BEAT_S, SILENCE_S, UNACKED_S, LEFT_IDS_S, LOAD_S_MAX = 1, 6, 2, 60, 330
-- Everything of a pool is gone so long after its last router: a day's budget is not.
local POOL_KEPT_S = 93600
local STREAM_MAXLEN, LEFT_IDS_MAX, PAST_IDS_MAX = 4096, 65536, 16384
local ABSENT_COPIES_MAX, DOWN_NODES_MAX, TEAMS_KEPT, PREFERRED_MAX = 16384, 4096, 4096, 8
local LOOKAHEAD = 8
local SERVED_BEFORE = 2 ^ 42 -- makes the order numbers of those who are due smaller than all others
local DEBT_MAX_TOKENS = 32768
local COST_MIN_TOKENS = 1 -- a call that made no token had a slot all the same
local FORGET_MAX = 1000 -- of each kind in one beat: forgetting never keeps the server for long

local beginnings = {}

-- Has `begin` called before the first step of each run.
local function each_run(begin)
  beginnings[#beginnings + 1] = begin
end

local pool -- what each of its keys begins with
local K -- the pool's keys by name
local speaker -- replica, session, run, and in tests the clock
local meta

local key_of = {
  __index = function(keys, name)
    local key = pool .. name
    rawset(keys, name, key)
    return key
  end,
}

local function new_meta()
  return {
    run = '', greeted = '', leader = '', seq = 0, now = 0, answering = 0, ahead = 0, settled_at = 0, settling = false, new = true,
    epoch = 0, arrivals = 0, waiting = 0, leases = 0, groups = 0, marks = 0, level = 0, gate_due = FAR_S, unheard = {},
  }
end

local function begin_run(pool_prefix, who)
  call, pack, unpacked, fmt = redis.call, cmsgpack.pack, cmsgpack.unpack, string.format
  pool, K, speaker = pool_prefix, setmetatable({}, key_of), cjson.decode(who)
  local kept = call('GET', K.meta)
  meta = kept and unpacked(kept) or new_meta()
  for _, begin in ipairs(beginnings) do
    begin()
  end
end

-- Records of one hash. Whoever changes one says `set`.
local all_records = {}

local function records(name)
  local found, changed, self = nil, nil, {}

  each_run(function()
    found, changed = {}, {}
  end)

  function self.get(id)
    local record = found[id]
    if record == nil then
      local raw = call('HGET', K[name], id)
      record = raw and unpacked(raw)
      found[id] = record
    end
    return record or nil
  end

  function self.set(id, record)
    found[id], changed[id] = record, true
    return record
  end

  function self.drop(id)
    found[id], changed[id] = false, true
  end

  function self.flush()
    for id in pairs(changed) do
      if found[id] then
        call('HSET', K[name], id, pack(found[id]))
      else
        call('HDEL', K[name], id)
      end
    end
    changed = {}
  end

  function self.ids()
    self.flush()
    return call('HKEYS', K[name])
  end

  all_records[#all_records + 1] = self
  return self
end

local function number(value) -- as text: cjson would cut it to 14 digits
  return fmt('%.17g', value)
end

local function mark() -- a number that grows: what comes later stands later
  meta.marks = meta.marks + 1
  return meta.marks
end

-- Members of a sorted set that begin alike, in order. Parts of a member are joined by NUL.
local function span(prefix)
  return '[' .. prefix .. '\0', '(' .. prefix .. '\1'
end

local function members(key, prefix, limit)
  local from, to = span(prefix)
  return call('ZRANGEBYLEX', key, from, to, 'LIMIT', 0, limit or -1)
end

local function last_part(member)
  return string.match(member, '([^%z]*)$')
end

-- Ids for LEFT_IDS_S and up to a count; beyond either the oldest is forgotten.
local function memory(name, count_max)
  local values, order, self = nil, nil, {}

  each_run(function()
    values, order = K[name], K[name .. ':order']
  end)

  function self.add(id, value)
    value.at = meta.answering
    call('HSET', values, id, pack(value))
    call('ZADD', order, mark(), id)
    if call('ZCARD', order) > count_max then
      call('HDEL', values, call('ZPOPMIN', order)[1])
    end
  end

  function self.get(id)
    local raw = call('HGET', values, id)
    return raw and unpacked(raw) or nil
  end

  function self.drop(id)
    if call('HDEL', values, id) == 1 then
      call('ZREM', order, id)
    end
  end

  function self.forget()
    for _, id in ipairs(call('ZRANGE', order, 0, FORGET_MAX - 1)) do
      if self.get(id).at > meta.answering - LEFT_IDS_S then
        return
      end
      self.drop(id)
    end
  end

  return self
end

local function append(list, more)
  for _, each in ipairs(more) do
    list[#list + 1] = each
  end
end

-- Of this step: {replica, 'lease', ticket, lease id} or {replica, 'refused', ticket id, refusal}.
local news

each_run(function()
  news = {}
end)

local left, past = memory('left', LEFT_IDS_MAX), memory('past', PAST_IDS_MAX)
local teams, lines, tickets = records('teams'), records('lines'), records('tickets')
local nodes, copies, replicas = records('nodes'), records('copies'), records('replicas')
local Limits, Budget, Teams, Shares, Kinds, Queues, Lines, Drain = {}, {}, {}, {}, {}, {}, {}, {}
local Copies, Ledger, Custody, Board, News, Book = {}, {}, {}, {}, {}, {}

local function flush()
  for _, each in ipairs(all_records) do
    each.flush()
  end
  call('SET', K.meta, pack(meta), 'EX', POOL_KEPT_S) -- without it whatever is set would stay for ever
end
