-- KEYS: base. ARGV: lease, message id, delay, deliveries of this entry so far, attempts so far.
-- Returns 1, or what not_held() returns.
local base, lease, delay = KEYS[1], ARGV[1], tonumber(ARGV[3])
if not redis.call('ZSCORE', base .. ':leases', lease) then return not_held(base, lease) end
local rank, entry = parse(lease)
local fields = delay > 0 and entry_of(base .. ':' .. rank, entry)
if fields then
  postpone(base, rank, ARGV[2], ARGV[5], due_after(delay), fields)
  finish(base, lease, rank, entry)
else
  release(base, lease, ARGV[4])
end
ring(base)
return 1
