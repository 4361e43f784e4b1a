-- Whether a declaration would change nothing. It writes nothing either, so that who only comes
-- back can do so while the server takes no writes.
-- KEYS: the exchanges, the queues, the queue's route, its base.
-- ARGV: exchange, type, queue. Returns 1 or 0.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
if redis.call('SISMEMBER', KEYS[2], ARGV[3]) == 0 then return 0 end
if redis.call('SISMEMBER', KEYS[3], ARGV[3]) == 0 then return 0 end
local base, held = KEYS[4], 0
for _, rank in ipairs(RANKS) do
  local pending = redis.pcall('XPENDING', base .. ':' .. rank, GROUP)
  if pending.err then return 0 end
  for _, consumer in ipairs(pending[4] or {}) do
    if consumer[1] ~= RELEASED then held = held + consumer[2] end
  end
end
-- What the group believes to be leased and nobody holds has to be mended.
return held == redis.call('ZCARD', base .. ':leases') and 1 or 0
