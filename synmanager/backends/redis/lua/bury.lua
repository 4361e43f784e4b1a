-- KEYS: base. ARGV: lease, message id, attempts, reason. Returns 1, or what not_held() returns.
-- The fields of a dead letter begin with these five pairs; then come the message's own.
local base, lease = KEYS[1], ARGV[1]
if not redis.call('ZSCORE', base .. ':leases', lease) then return not_held(base, lease) end
local rank, entry = parse(lease)
local fields = entry_of(base .. ':' .. rank, entry)
if fields then
  append(base .. ':dead', {
    'rank', rank, 'id', ARGV[2], 'reason', ARGV[4], 'attempts', ARGV[3],
    'died_at', milliseconds()}, fields, 1)
end
finish(base, lease, rank, entry)
redis.call('HDEL', base .. ':ids', ARGV[2])
return 1
