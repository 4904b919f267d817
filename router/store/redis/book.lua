-- Commands: sessions and the two times (store/book.py).

local OWN = {}

-- One more step, at this time. Store time never goes back: a clock that does is moved forward. Answering time, which
-- deadlines are measured by, grows by at most one beat a step: a store that was frozen reaps nobody.
local function advance(clock)
  meta.seq = meta.seq + 1
  if meta.new then
    meta.new, meta.now = false, clock
  end
  local passed = clock + meta.ahead - meta.now
  if passed < 0 then
    meta.ahead, passed = meta.ahead - passed, 0
  end
  meta.now = meta.now + passed
  meta.answering = meta.answering + math.min(passed, BEAT_S)
  if meta.now >= meta.gate_due then
    Ledger.offer(Copies.open_due())
  end
  if meta.settling and meta.answering >= meta.settled_at then
    Ledger.settled()
  end
end

local function enter_session()
  local replica = replicas.get(speaker.replica)
  if not replica then
    return 'reaped'
  end
  if replica.session ~= speaker.session then
    return 'old_session'
  end
  replica.heard = meta.answering
  replicas.set(speaker.replica, replica)
  if meta.unheard[speaker.replica] then
    Ledger.heard(speaker.replica)
  end
end

local function drop(replica)
  replicas.drop(replica)
  local freed = Custody.drop(replica)
  call('DEL', News.stream_of(replica), News.owed_of(replica))
  return freed
end

local function drop_silent()
  local silent, freed = {}, {}
  for _, name in ipairs(replicas.ids()) do
    if replicas.get(name).heard <= meta.answering - SILENCE_S then
      silent[#silent + 1] = name
    end
  end
  table.sort(silent)
  for _, name in ipairs(silent) do
    append(freed, drop(name))
  end
  return silent, freed
end

local KEYS_OF_THE_POOL = {
  'meta', 'limits', 'teams', 'team-order', 'groups', 'group-of', 'standings', 'standing-index', 'stale', 'lines', 'queue',
  'waiting', 'tickets', 'held', 'unclaimed', 'nodes', 'copies', 'models', 'serving', 'free', 'busy', 'closed', 'absent',
  'down', 'occupancy', 'board', 'board:order', 'board:fading', 'left', 'left:order', 'past', 'past:order', 'replicas',
}
local RENEW_EVERY_S = 1 -- a key that is made anew has no end: only those of a pool's last second may stay

local function keep_alive()
  meta.renewed = meta.answering
  flush()
  for _, name in ipairs(KEYS_OF_THE_POOL) do
    call('EXPIRE', K[name], POOL_KEPT_S)
  end
end

-- Commands by name: their arguments in, their value out, and news beside what the step itself made.

local commands = {}

function commands.bye()
  Ledger.offer(drop(speaker.replica))
  keep_alive()
end

function commands.beat(acked, heard)
  local replica = speaker.replica
  local lapsed = Ledger.acknowledge(replica, acked)
  local freed = Custody.lapse()
  local _, more = drop_silent()
  append(freed, more)
  Ledger.offer(freed)
  Ledger.forget()
  if meta.answering >= (meta.renewed or -RENEW_EVERY_S) + RENEW_EVERY_S then
    keep_alive()
  end
  call('EXPIRE', News.stream_of(replica), News.KEPT_S)
  News.spread(replica) -- the caller's own are among what is owed and unclaimed
  local told_again = News.owed_to(replica, heard)
  append(told_again, News.read(replica, true))
  append(told_again, News.unclaimed(replica))
  return lapsed, told_again
end

function commands.read()
  return OWN, News.read(speaker.replica, false)
end

function commands.ack(lease_ids)
  return Ledger.acknowledge(speaker.replica, lease_ids)
end

function commands.take(ticket)
  return Ledger.take(speaker.replica, ticket)
end

function commands.widen(id, targets)
  return Ledger.widen(id, targets)
end

function commands.place_of(id)
  return Ledger.place_of(id)
end

function commands.leave(id, tokens)
  Ledger.leave(id, tokens)
end

function commands.give_back(lease_id, tokens)
  Ledger.give_back(lease_id, tokens)
end

function commands.refuse(key, refusal)
  return Ledger.refuse(key, { 'told', refusal })
end

function commands.lines()
  return Lines.views()
end

function commands.set_limits(limits)
  Limits.keep(limits)
  Lines.apply_limits()
  Teams.apply_limits()
  Ledger.seek_all()
end

function commands.set_copy(report)
  local copy = Copies.report(report, speaker.replica)
  if #copy.keys > 1 then
    Shares.join(copy.keys)
  end
  Ledger.offer({ copy })
  local node = nodes.get(copy.node)
  return (node.down or report.incarnation < node.incarnation) and { node.incarnation, node.down } or nil
end

function commands.drop_node(node, incarnation)
  Copies.drop_node(node, incarnation)
end

function commands.incarnate(node, uid)
  return Copies.incarnate(node, uid)
end

-- The caller leads from now on where nobody does, or whoever did is gone; unless it does not want to.
function commands.lead(wants)
  if not wants and meta.leader == speaker.replica then
    meta.leader = ''
  end
  if wants and not replicas.get(meta.leader) then
    meta.leader, meta.epoch = speaker.replica, meta.epoch + 1
  end
  return { meta.epoch, meta.leader == speaker.replica }
end

-- How many replicas there are, also those of this very run, leases by place, and who leads.
function commands.look()
  local leader = replicas.get(meta.leader) and meta.leader or ''
  return { #replicas.ids(), call('HGETALL', K.occupancy), leader }
end

function commands.board(since, words)
  return Board.exchange(since, words)
end

function commands.begin(node, weights, is_load, epoch)
  if epoch < meta.epoch then
    return false
  end
  meta.epoch = epoch
  return Copies.begin(node, weights, speaker.replica, is_load)
end

function commands.gate(node, weights, gate, until_s)
  Ledger.offer(Copies.gate(node, weights, gate, until_s))
end

-- Opens a session, its number. On connecting, after 'reaped', and whenever `run` changed or `seq` went back. `greeting`
-- counts the replica's hellos: one that comes after a later one, or twice, changes nothing and has no number.
function Book.hello(clock, last_seq, leases, wanted, greeting)
  -- Also where this replica saw none of the lost writes: another may hold what they gave it.
  local is_new_life = meta.seq == 0 or meta.greeted ~= meta.run
  advance(clock)
  local known = replicas.get(speaker.replica)
  if known and known.greeting and greeting <= known.greeting then -- an older version's routers count none
    return nil
  end
  if is_new_life or last_seq >= meta.seq then
    meta.settled_at = meta.answering + speaker.settle
    meta.greeted = meta.run
    meta.settling = speaker.settle > 0
  end
  -- Above any number given before a fail-over, which this life of the store may not remember.
  local session = math.max(meta.seq, last_seq + 1)
  meta.seq, speaker.session = session, session
  call('DEL', News.owed_of(speaker.replica)) -- what it still waits for it names
  replicas.set(speaker.replica, { session = session, greeting = greeting, heard = meta.answering })
  Ledger.offer(Custody.adopt(speaker.replica, leases, wanted))
  Ledger.heard(speaker.replica)
  return session
end

function Book.reap()
  local silent, freed = drop_silent()
  Ledger.offer(freed)
  return silent
end

local function step(clock, command)
  local name, status, value, more = table.remove(command, 1), 'ok', nil, nil
  if name == 'hello' then
    value = Book.hello(clock, unpack(command))
    status = value and 'ok' or 'old_session'
  else
    advance(clock)
    if name == 'reap' then
      value = Book.reap()
    elseif name == 'pass' then
      value = OWN
    else
      status = enter_session() or 'ok'
      if status == 'ok' then
        value, more = commands[name](unpack(command))
      end
    end
  end
  local own = more or {}
  append(own, News.spread(status == 'ok' and speaker.replica or ''))
  if value == nil then
    value = false
  end
  return cjson.encode({ meta.seq, number(meta.now), meta.run, status, value, own })
end

local function now_s()
  local time = call('TIME')
  math.randomseed(time[2] + meta.seq)
  return speaker.clock or time[1] + time[2] / 1e6
end

-- keys[1]: what every key of the pool begins with. args[1]: who speaks, args[2..]: commands.
function Book.run(keys, args)
  begin_run(keys[1], args[1])
  meta.run = speaker.run
  local clock, answers = now_s(), {}
  for i = 2, #args do
    answers[i - 1] = step(clock, cjson.decode(args[i]))
  end
  flush()
  return answers
end
