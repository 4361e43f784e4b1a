-- KEYS: base. ARGV: lease, message id. Returns 1, or what not_held() returns.
local base, lease = KEYS[1], ARGV[1]
if redis.call('ZREM', base .. ':leases', lease) == 0 then return not_held(base, lease) end
local rank, entry = parse(lease)
remove(base, rank, entry)
redis.call('HDEL', base .. ':ids', ARGV[2])
return 1
