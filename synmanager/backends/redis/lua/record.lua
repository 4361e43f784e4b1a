-- Append to a log of the journal, and let its oldest entries go, whole nodes of the stream at a time.
-- KEYS: the log. ARGV: for how long it keeps an entry, how many bytes it keeps, the entries.
-- Returns how many entries there are.

-- An entry counts the bytes up to and with it, so that the first and the last tell what lies between.
local function total(entries)
  local fields = entries[1] and entries[1][2] or {}
  return fields[1] == 'total' and tonumber(fields[2]) or 0
end

local log, most = KEYS[1], tonumber(ARGV[2])
local bytes = total(redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1))
for i = 3, #ARGV do
  bytes = bytes + #ARGV[i]
  redis.call('XADD', log, '*', 'total', string.format('%.0f', bytes), 'data', ARGV[i])
end
local oldest = math.max(milliseconds() - tonumber(ARGV[1]), 0)
redis.call('XTRIM', log, 'MINID', '~', string.format('%.0f', oldest))
local length = redis.call('XLEN', log)
local kept = bytes - total(redis.call('XRANGE', log, '-', '+', 'COUNT', 1))
if kept > most then
  -- By their mean size, and so few that it matters little if the oldest are larger.
  local excess = math.min(math.floor(length * (1 - most / kept)), #ARGV + 100)
  redis.call('XTRIM', log, 'MAXLEN', '~', math.max(length - excess, 1))
end
return length
