-- Who is told what: grants and refusals on their way to their replicas (store/replica.py, store/book.py).

News.KEPT_S = 3600 -- after the last

function News.stream_of(replica)
  return K['stream:' .. replica]
end

local function told(each) -- as JSON; false for a grant that the same step took back
  if each[2] == 'refused' then
    return { 'refused', each[3], each[4] }
  end
  local ticket = each[3]
  if not ticket.granted or ticket.lease.id ~= each[4] then
    return false
  end
  return Ledger.lease_value(ticket, ticket.lease)
end

-- Tickets of refusals that a replica has not said it heard: its beats name them again.
function News.owed_of(replica)
  return K['owed:' .. replica]
end

local function owe(replica, ticket)
  local owed = News.owed_of(replica)
  call('ZADD', owed, mark(), ticket)
  if call('ZCARD', owed) > LEFT_IDS_MAX then
    call('ZPOPMIN', owed)
  end
  call('EXPIRE', owed, News.KEPT_S)
end

function News.owed_to(replica, heard)
  local owed, found = News.owed_of(replica), {}
  for _, ticket in ipairs(heard) do
    call('ZREM', owed, ticket)
  end
  for _, ticket in ipairs(call('ZRANGE', owed, 0, -1)) do
    local gone = left.get(ticket)
    if gone and gone.refusal then
      found[#found + 1] = { 'refused', ticket, cjson.decode(gone.refusal) }
    else -- it left, or was served after all
      call('ZREM', owed, ticket)
    end
  end
  return found
end

-- Sends this step's news to those they are for; answers the caller's own.
function News.spread(replica)
  local own = {}
  for _, each in ipairs(news) do
    local value = told(each)
    if value and each[2] == 'refused' and replicas.get(each[1]) then
      owe(each[1], each[3])
    end
    if value and each[1] == replica then
      own[#own + 1] = value
    elseif value and replicas.get(each[1]) then
      local stream = News.stream_of(each[1])
      -- What is owed says so: of an earlier version's steps a beat has nothing but the stream.
      call('XADD', stream, 'MAXLEN', '=', STREAM_MAXLEN, '*', 'news', cjson.encode(value), 'by', 'owed')
      call('EXPIRE', stream, News.KEPT_S)
    end
  end
  news = {}
  return own
end

-- What came by the stream since it was read last, less grants that have lapsed. A beat, which names all that is owed and
-- unclaimed, reads it for what an earlier version's steps refused: `is_beat`.
function News.read(replica, is_beat)
  local found = {}
  for _, entry in ipairs(call('XRANGE', News.stream_of(replica), '-', '+')) do
    local value = cjson.decode(entry[2][2])
    local ticket = value[1] == 'lease' and tickets.get(value[3])
    local is_granted = ticket and ticket.granted and ticket.lease.id == value[2]
    if is_beat and value[1] == 'refused' and #entry[2] == 2 or not is_beat and (value[1] == 'refused' or is_granted) then
      found[#found + 1] = value
    end
  end
  call('XTRIM', News.stream_of(replica), 'MAXLEN', '=', 0)
  return found
end

function News.unclaimed(replica)
  local found = {}
  for _, member in ipairs(call('ZRANGE', K.unclaimed, 0, -1)) do
    local ticket = string.sub(member, 1, #replica + 1) == replica .. '\0' and tickets.get(last_part(member))
    if ticket then
      found[#found + 1] = Ledger.lease_value(ticket, ticket.lease)
    end
  end
  return found
end
