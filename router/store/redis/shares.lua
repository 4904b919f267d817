-- What teams were served, and where that puts them: accounts, fronts and tags of fair queueing (policy/shares.py).

local groups, standings = records('groups'), records('standings')
local group_of = records('group-of') -- of a model key

function Shares.charge(team, tokens)
  team.used = team.used + tokens / team.limits.weight
  Teams.changed(team)
end

function Shares.serve(team, tokens)
  meta.level = math.max(meta.level, team.used)
  Shares.charge(team, tokens)
end

-- The front of a model key: its number. Names that share slots share one; each band has a virtual time of its own.
function Shares.group(key)
  local id = group_of.get(key)
  if not id then
    meta.groups = meta.groups + 1
    id = fmt('%d', meta.groups)
    group_of.set(key, id)
    groups.set(id, { keys = { [key] = true }, times = { 0, 0, 0 } })
    call('ZADD', K.stale, 'NX', 0, key)
  end
  return id
end

function Shares.time(group, band)
  return groups.get(group).times[band + 1]
end

function Shares.advance(group, band, tag)
  local record = groups.get(group)
  if tag > record.times[band + 1] then
    record.times[band + 1] = tag
    groups.set(group, record)
  end
end

local function standing_id(group, band, name)
  return group .. '\0' .. band .. '\0' .. name
end

local function keep_standing(group, band, name, standing)
  local id = standing_id(group, band, name)
  call('ZADD', K['standing-index'], 0, 'group\0' .. id, 0, 'team\0' .. name .. '\0' .. group .. '\0' .. band)
  return standings.set(id, standing)
end

local function drop_standing(group, band, name)
  local id = standing_id(group, band, name)
  call('ZREM', K['standing-index'], 'group\0' .. id, 'team\0' .. name .. '\0' .. group .. '\0' .. band)
  standings.drop(id)
end

function Shares.tag(group, band, team)
  return team.used + standings.get(standing_id(group, band, team.name)).offset
end

-- A team's first ticket at a front gets its tag: not before the front, and at most DEBT_MAX_TOKENS behind it. Who never
-- stood here is behind by what it used elsewhere, measured against who was served most.
function Shares.enter(group, band, team)
  local time, tag = Shares.time(group, band), nil
  local standing = standings.get(standing_id(group, band, team.name))
  if not standing then
    standing = keep_standing(group, band, team.name, { offset = 0, waiting = 0 })
    tag = time + team.used - (meta.level - DEBT_MAX_TOKENS)
  elseif standing.waiting > 0 then
    return team.used + standing.offset
  else
    tag = team.used + standing.offset
    if time <= tag and tag <= time + DEBT_MAX_TOKENS then
      return tag
    end
  end
  standing.offset = math.min(math.max(tag, time), time + DEBT_MAX_TOKENS) - team.used
  standings.set(standing_id(group, band, team.name), standing)
  return team.used + standing.offset
end

-- In the lines of this front, and nowhere else. One that has been joined to another since, or forgotten, is let go.
function Shares.charge_at(group, band, team, tokens)
  local id = standing_id(group, band, team.name)
  local standing = standings.get(id)
  if standing then
    standing.offset = standing.offset + tokens / team.limits.weight
    standings.set(id, standing)
  end
end

function Shares.count(group, band, team, change)
  local id = standing_id(group, band, team.name)
  local standing = standings.get(id)
  standing.waiting = standing.waiting + change
  standings.set(id, standing)
end

-- What counts of two virtual times that become one is how far a team is behind its front.
local function merge(into, from)
  for band = 0, 2 do
    local shift = Shares.time(into, band) - Shares.time(from, band)
    for _, member in ipairs(members(K['standing-index'], 'group\0' .. from .. '\0' .. band)) do
      local name = last_part(member)
      local moved = standings.get(standing_id(from, band, name))
      local kept = standings.get(standing_id(into, band, name))
      drop_standing(from, band, name)
      local offset = moved.offset + shift
      if kept then
        moved = { offset = math.max(kept.offset, offset), waiting = kept.waiting + moved.waiting }
      else
        moved = { offset = offset, waiting = moved.waiting }
      end
      keep_standing(into, band, name, moved)
    end
  end
end

-- These names share slots from now on, hence one front.
function Shares.join(keys)
  local into = Shares.group(keys[1])
  for i = 2, #keys do
    local from = group_of.get(keys[i])
    if from ~= into then
      local record, names = groups.get(into), { [keys[i]] = true }
      if from then
        merge(into, from)
        names = groups.get(from).keys
        groups.drop(from)
      else
        call('ZADD', K.stale, 'NX', 0, keys[i])
      end
      for name in pairs(names) do
        record.keys[name] = true
        group_of.set(name, into)
      end
      groups.set(into, record)
    end
  end
end

function Shares.forget_key(key)
  local id = group_of.get(key)
  if not id then
    return
  end
  group_of.drop(key)
  local record = groups.get(id)
  record.keys[key] = nil
  if next(record.keys) then
    groups.set(id, record)
    return
  end
  for band = 0, 2 do
    for _, member in ipairs(members(K['standing-index'], 'group\0' .. id .. '\0' .. band)) do
      drop_standing(id, band, last_part(member))
    end
  end
  groups.drop(id)
end

function Shares.forget_team(name)
  for _, member in ipairs(members(K['standing-index'], 'team\0' .. name)) do
    local group, band = string.match(member, '([^%z]*)%z([^%z]*)$')
    drop_standing(group, band, name)
  end
end
