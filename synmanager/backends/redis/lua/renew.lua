-- KEYS: base. ARGV: lease, its length. Returns now, or what not_held() returns.
local base, lease = KEYS[1], ARGV[1]
if not redis.call('ZSCORE', base .. ':leases', lease) then return not_held(base, lease) end
local now = milliseconds()
redis.call('ZADD', base .. ':leases', now + ARGV[2], lease)
return now
