-- Make a declared queue whole: its streams, its groups, and in those every entry where :leases
-- says it is; and remove what does not belong there. Runs when a queue is declared, and when
-- somebody deleted its streams or groups, or put something of his own in its keys.
-- KEYS: the queues, the base. ARGV: the queue's name. Returns what was removed, as pairs of a key
-- and a member; nil if the queue was never declared.

if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then return false end
local base = KEYS[2]
local removed = {}

local function note(name, what)
  removed[#removed + 1] = base .. name
  removed[#removed + 1] = what
end

-- As many as promote() looks at. What is due later is found when it is due.
local now = milliseconds()
for _, member in ipairs(
    redis.call('ZRANGEBYSCORE', base .. ':due', '-inf', now, 'LIMIT', 0, 1000)) do
  if not unpad(member) then
    redis.call('ZREM', base .. ':due', member)
    note(':due', member)
  end
end

local kind = redis.call('TYPE', base .. ':bell').ok
if kind ~= 'stream' and kind ~= 'none' then
  redis.call('DEL', base .. ':bell')
  note(':bell', kind)
end

local held, newest = {}, {}
for _, lease in ipairs(redis.call('ZRANGE', base .. ':leases', 0, -1)) do
  local rank, entry = parse(lease)
  if not rank then
    redis.call('ZREM', base .. ':leases', lease)
    note(':leases', lease)
  elseif entry_of(base .. ':' .. rank, entry) then
    held[rank .. '/' .. entry] = true
    if not newest[rank] or pad(newest[rank]) < pad(entry) then newest[rank] = entry end
  end
end

local function has_group(key)
  if redis.call('EXISTS', key) == 0 then return false end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    if group[2] == GROUP then return true end
  end
  return false
end

if not has_group(base .. ':bell') then
  redis.call('XGROUP', 'CREATE', base .. ':bell', GROUP, '0', 'MKSTREAM')
end
for _, rank in ipairs(RANKS) do
  local key = base .. ':' .. rank
  -- A new group starts behind the newest leased entry. What is older and still there was
  -- delivered once: it is leased, or somebody has to run it again.
  if not has_group(key) then
    redis.call('XGROUP', 'CREATE', key, GROUP, newest[rank] or '0', 'MKSTREAM')
    for _, found in ipairs(newest[rank] and redis.call('XRANGE', key, '-', newest[rank]) or {}) do
      local consumer = held[rank .. '/' .. found[1]] and LEASED or RELEASED
      redis.call(
        'XCLAIM', key, GROUP, consumer, 0, found[1], 'FORCE', 'JUSTID', 'RETRYCOUNT', 1)
    end
  end
  -- What the group believes to be leased and nobody holds would never be delivered again.
  for _, pending in ipairs(redis.call('XPENDING', key, GROUP, '-', '+', 10000)) do
    if pending[2] ~= RELEASED and not held[rank .. '/' .. pending[1]] then
      redis.call('XCLAIM', key, GROUP, RELEASED, 0, pending[1], 'JUSTID')
    end
  end
end
return removed
