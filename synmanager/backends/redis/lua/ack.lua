-- KEYS: base. ARGV: lease, message id. Returns 1, or what not_held() returns.
local base, lease = KEYS[1], ARGV[1]
if not redis.call('ZSCORE', base .. ':leases', lease) then return not_held(base, lease) end
local rank, entry = parse(lease)
finish(base, lease, rank, entry)
redis.call('HDEL', base .. ':ids', ARGV[2])
return 1
