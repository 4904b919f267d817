-- Teams: what each may use, runs and has waiting (policy/limits.py, store/teams.py).

local DEFAULT_LIMITS = { weight = 1, priority = 1 }
local LIMIT_NAMES = { 'weight', 'priority', 'concurrent', 'waiting', 'requests', 'minute', 'day' }

function Limits.line(key)
  return tonumber(call('HGET', K.limits, 'line:' .. key) or call('HGET', K.limits, 'line') or 256)
end

function Limits.team(name)
  local raw = call('HGET', K.limits, 'team:' .. name) or call('HGET', K.limits, 'team')
  return raw and unpacked(raw) or DEFAULT_LIMITS
end

function Limits.keep(limits)
  call('DEL', K.limits)
  call('HSET', K.limits, 'line', limits.line, 'team', pack(limits.team))
  for key, max in pairs(limits.lines) do
    call('HSET', K.limits, 'line:' .. key, max)
  end
  for name, of_team in pairs(limits.teams) do
    call('HSET', K.limits, 'team:' .. name, pack(of_team))
  end
end

-- Buckets fill up to their limit in their period. Below zero all wait for a call that used more than estimated.

local function bucket(limit, period)
  return limit and { limit = limit, period = period, level = limit, at = meta.now } or false
end

local function refill(each)
  each.level = math.min(each.limit, each.level + (meta.now - each.at) * (each.limit / each.period))
  each.at = meta.now
end

local function wait_of(each, amount)
  return math.max(0, (math.min(amount, each.limit) - each.level) / (each.limit / each.period))
end

local function use(each, amount)
  if each then
    each.level = math.min(each.limit, each.level - amount)
  end
end

local function allowance(each)
  if not each then
    return false
  end
  local reset = (each.limit - each.level) / (each.limit / each.period)
  return { each.limit, math.max(0, math.floor(each.level)), number(reset) }
end

function Budget.new(limits)
  return {
    requests = bucket(limits.requests, 60), minute = bucket(limits.minute, 60), day = bucket(limits.day, 86400),
  }
end

function Budget.is_untouched(budget)
  for _, each in pairs(budget) do
    if each then
      refill(each)
      if each.level < each.limit then
        return false
      end
    end
  end
  return true
end

-- As of the last `admit`; nil for a team without limits. Of the limits of tokens the one that another such call would wait
-- for longest, or that has least left.
function Budget.left(budget, estimate)
  local minute, day = budget.minute, budget.day
  local tokens = minute or day
  if minute and day then
    local minute_s, day_s = wait_of(minute, estimate), wait_of(day, estimate)
    if day_s > minute_s or (day_s == minute_s and day.level < minute.level) then
      tokens = day
    end
  end
  return (budget.requests or tokens) and { allowance(budget.requests), allowance(tokens) } or nil
end

-- Books a call and its estimate; or answers why not, and books nothing.
function Budget.admit(budget, estimate)
  local wait = 0
  for name, each in pairs(budget) do
    if each then
      refill(each)
      wait = math.max(wait, wait_of(each, name == 'requests' and 1 or estimate))
    end
  end
  if wait > 0 then
    local allowed = Budget.left(budget, estimate)
    local is_requests = budget.requests and wait_of(budget.requests, 1) == wait
    local what = is_requests and 'requests' or 'tokens'
    return { 'rate', what, allowed[1], allowed[2], number(wait) }
  end
  use(budget.requests, 1)
  Budget.book(budget, estimate)
end

function Budget.book(budget, tokens)
  use(budget.minute, tokens)
  use(budget.day, tokens)
end

-- Under other limits what was used of the old ones is used of these.
function Budget.renewed(budget, limits)
  local other = Budget.new(limits)
  for name, old in pairs(budget) do
    if old then
      refill(old)
      use(other[name], old.limit - old.level)
    end
  end
  return other
end

function Teams.of(name)
  local team = teams.get(name)
  if team then
    return team
  end
  local limits = Limits.team(name)
  call('ZADD', K['team-order'], mark(), name)
  return teams.set(name, {
    name = name, limits = limits, used = meta.level - DEBT_MAX_TOKENS, held = false,
    running = 0, waiting = 0, refused = 0, budget = Budget.new(limits),
  })
end

function Teams.changed(team)
  teams.set(team.name, team)
end

function Teams.began(team)
  team.running = team.running + 1
  local most = team.limits.concurrent
  team.held = team.held or (most and team.running >= most) or false
  Teams.changed(team)
end

-- Whether it was held back by its own limit until now.
function Teams.ended(team)
  team.running = team.running - 1
  Teams.changed(team)
  local most = team.limits.concurrent
  if not team.held or not most or team.running >= most then
    return false
  end
  team.held = false
  return true
end

function Teams.book(team, tokens)
  Budget.book(team.budget, tokens)
  Teams.changed(team)
end

function Teams.cancel(team, estimate) -- a call that the pool refused is as if it had not come
  use(team.budget.requests, -1)
  Teams.book(team, -estimate)
end

function Teams.apply_limits()
  for _, name in ipairs(teams.ids()) do
    local team, limits = teams.get(name), Limits.team(name)
    local same = true
    for _, field in ipairs(LIMIT_NAMES) do
      same = same and (team.limits[field] or false) == (limits[field] or false)
    end
    if not same then
      team.limits, team.budget = limits, Budget.renewed(team.budget, limits)
      team.held = (limits.concurrent and team.running >= limits.concurrent) or false
      Teams.changed(team)
    end
  end
end

-- Beyond TEAMS_KEPT those that nothing is owed to or by.
function Teams.forget()
  local over = call('ZCARD', K['team-order']) - TEAMS_KEPT
  if over <= 0 then
    return
  end
  for _, name in ipairs(call('ZRANGE', K['team-order'], 0, FORGET_MAX - 1)) do
    local team = teams.get(name)
    if over > 0 and team.running == 0 and team.waiting == 0 and Budget.is_untouched(team.budget) then
      over = over - 1
      call('ZREM', K['team-order'], name)
      teams.drop(name)
      Shares.forget_team(name)
    else
      call('ZADD', K['team-order'], mark(), name) -- looked at again when its turn has come round
    end
  end
end
