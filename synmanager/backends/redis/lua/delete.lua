-- Remove a message that nobody holds. KEYS: base. ARGV: message id. Returns 1 or 0.
local base = KEYS[1]
local stream, entry = place_of(base, ARGV[1])
if not stream then return 0 end
local key = base .. ':' .. stream
if stream == 'delayed' then
  redis.call('ZREM', base .. ':due', pad(entry))
else
  local pending = redis.call('XPENDING', key, GROUP, entry, entry, 1)[1]
  if pending and pending[2] ~= RELEASED then return 0 end
  redis.call('XACK', key, GROUP, entry)
end
redis.call('HDEL', base .. ':ids', ARGV[1])
return redis.call('XDEL', key, entry)
