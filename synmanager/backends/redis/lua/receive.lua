-- Take one message: the first queue that has one, its highest rank, its oldest.
-- KEYS: the bases of the queues. ARGV: token, lease, expected, tolerance, trusted (see trust()), and
-- for who has waited, which bells woke it: 1 or 0 for each queue; else nothing.
-- To acknowledge another message before, its base is the last key, and its lease and id the last
-- arguments.
-- Returns {queue's number, rank, entry, deliveries, fields, now} or
-- {0, now, when to look again or -1, what catch_up() says of doubts or -1} or
-- {-1} if that other message was not held, and then nothing is taken.

local function take_from(key)
  while true do
    local pending = redis.call('XPENDING', key, GROUP, '-', '+', 1, RELEASED)[1]
    if not pending then break end
    -- Of strangers who claim there may be any number.
    local entry, deliveries = pending[1], math.min(pending[4], 1e9) + 1
    local claimed = redis.call(
      'XCLAIM', key, GROUP, LEASED, 0, entry, 'RETRYCOUNT', deliveries)[1]
    if claimed then return entry, deliveries, claimed[2] end
    redis.call('XACK', key, GROUP, entry) -- somebody deleted it from the stream
  end
  local read = redis.call('XREADGROUP', 'GROUP', GROUP, LEASED, 'COUNT', 1, 'STREAMS', key, '>')
  if read then
    local found = read[1][2][1]
    return found[1], 1, found[2]
  end
end

local function take(base)
  for _, rank in ipairs(RANKS) do
    local key = base .. ':' .. rank
    if redis.call('XLEN', key) > 0 then
      local entry, deliveries, fields = take_from(key)
      if entry then return rank, entry, deliveries, fields end
    end
  end
end

-- Who stops waiting lets another one look, where there may be more: it alone was woken for that.
local function pass_on(taken)
  for number, base in ipairs(KEYS) do
    if number == taken or ARGV[6]:sub(number, number) == '1' then ring(base, 1) end
  end
end

if ARGV[7] then
  if ack(table.remove(KEYS), ARGV[7], ARGV[8]) <= 0 then return {-1} end
end

local now = milliseconds()
local trusted = trust(now, ARGV[3], ARGV[4], ARGV[5])
local wake, doubt = math.huge, math.huge
for number, base in ipairs(KEYS) do
  local at, enough = catch_up(base, now, trusted)
  wake, doubt = math.min(wake, at or math.huge), math.min(doubt, enough or math.huge)
  local rank, entry, deliveries, fields = take(base)
  if rank then
    local lease = rank .. '/' .. entry .. '/' .. ARGV[2] .. '/' .. ARGV[1]
    redis.call('ZADD', base .. ':leases', now + ARGV[2], lease)
    if ARGV[6] ~= '' then pass_on(number) end
    return {number, rank, entry, deliveries, fields, now}
  end
end

-- Of times beyond all reason, which are a stranger's, nobody has to be told.
local empty = {0, now, wake < 1e15 and wake or -1, doubt < math.huge and doubt or -1}
for _, base in ipairs(KEYS) do
  -- NOGROUP where there is no queue: that it is empty is not the whole truth then.
  for _, rank in ipairs(RANKS) do redis.call('XPENDING', base .. ':' .. rank, GROUP) end
  if redis.pcall('XPENDING', base .. ':bell', GROUP).err then broken(base) end
end
return empty
