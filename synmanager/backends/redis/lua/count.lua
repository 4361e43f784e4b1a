-- KEYS: base. ARGV: expected, tolerance, trusted (see trust()).
-- Returns {ready, leased, delayed, dead, now}. What is due or expired is ready, as for a receive:
-- who only counts, and receives when there is something, must see the job of a dead worker.
local base, now = KEYS[1], milliseconds()
catch_up(base, now, trust(now, ARGV[1], ARGV[2], ARGV[3]))
local all = 0
for _, rank in ipairs(RANKS) do
  redis.call('XPENDING', base .. ':' .. rank, GROUP) -- NOGROUP where there is no queue
  all = all + redis.call('XLEN', base .. ':' .. rank)
end
local leased = redis.call('ZCARD', base .. ':leases')
return {
  math.max(all - leased, 0), leased, redis.call('ZCARD', base .. ':due'),
  redis.call('XLEN', base .. ':dead'), now}
