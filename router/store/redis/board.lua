-- What replicas tell one another of nodes (fleet/words.py): a word on each topic, of which the youngest counts. What
-- is not told again is forgotten.

-- An answer with READ_TOPICS takes some 6 ms; whoever joins a large pool asks again at once.
local BOARD_KEPT_S, BOARD_MAX, READ_BYTES, READ_TOPICS = 3600, 65536, 262144, 512

local function forget(topics)
  for _, topic in ipairs(topics) do
    call('HDEL', K.board, topic)
    call('ZREM', K['board:order'], topic)
    call('ZREM', K['board:fading'], topic)
  end
end

local function keep(topic, at, text)
  local raw = call('HGET', K.board, topic)
  local known = raw and unpacked(raw)
  at = math.min(at, meta.now) -- a time ahead of ours would lock out everybody else's words
  if known and at < known.at then
    return
  end
  call('ZADD', K['board:fading'], meta.answering + BOARD_KEPT_S, topic)
  if known and text == known.text then
    known.at = at
    call('HSET', K.board, topic, pack(known))
    return
  end
  meta.board = meta.board + 1
  call('HSET', K.board, topic, pack({ at = at, text = text, by = speaker.replica }))
  call('ZADD', K['board:order'], meta.board, topic)
end

-- Words that came since, but for the caller's own; as many as one answer may hold.
local function read(since)
  local found, bytes, upto = {}, 0, since
  local list = call('ZRANGEBYSCORE', K['board:order'], '(' .. since, '+inf', 'WITHSCORES', 'LIMIT', 0, READ_TOPICS)
  for i = 1, #list, 2 do
    local word = unpacked(call('HGET', K.board, list[i]))
    if since == 0 or word.by ~= speaker.replica then
      bytes = bytes + #word.text
      if bytes > READ_BYTES and #found > 0 then
        return found, upto, true
      end
      found[#found + 1] = { list[i], number(word.at), word.text }
    end
    upto = tonumber(list[i + 1])
  end
  return found, upto, #list == 2 * READ_TOPICS
end

-- Keeps `words`, each {topic, at, text}, and answers those of the others since then, and who lives.
function Board.exchange(since, words)
  meta.board = meta.board or 0
  local is_lost = since > meta.board
  for _, word in ipairs(words) do
    keep(unpack(word))
  end
  forget(call('ZRANGEBYSCORE', K['board:fading'], '-inf', meta.answering, 'LIMIT', 0, FORGET_MAX))
  local surplus = call('ZCARD', K['board:fading']) - BOARD_MAX
  if surplus > 0 then
    forget(call('ZRANGE', K['board:fading'], 0, math.min(surplus, FORGET_MAX) - 1))
  end
  local found, upto, has_more = read(is_lost and 0 or since)
  return { upto, has_more, is_lost, found, replicas.ids() }
end
