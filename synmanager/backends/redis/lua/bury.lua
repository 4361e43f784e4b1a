-- KEYS: base. ARGV: lease, message id, attempts, reason, traceback. Returns 1, or what not_held()
-- returns.
-- The fields of a dead letter begin with these six pairs; then come the message's own.
local base, lease = KEYS[1], ARGV[1]
if not redis.call('ZSCORE', base .. ':leases', lease) then return not_held(base, lease) end
local rank, entry = parse(lease)
local fields = entry_of(base .. ':' .. rank, entry)
redis.call('HLEN', base .. ':ids') -- if it is no index, end before anything is done
if fields then
  append(base .. ':dead', {
    'rank', rank, 'id', ARGV[2], 'reason', ARGV[4], 'attempts', ARGV[3],
    'died_at', milliseconds(), 'traceback', ARGV[5]}, fields, 1)
end
finish(base, lease, rank, entry)
forget(base, ARGV[2], rank, entry)
return 1
