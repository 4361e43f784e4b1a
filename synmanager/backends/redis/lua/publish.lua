-- Put messages in every queue that is bound to a route.
-- KEYS: the exchanges, the exchange's fanout route, its route for this key.
-- ARGV: exchange, what a queue's base begins with, delay, then for each message
-- id, rank, submitted_at, schema, body.
-- Returns how many queues are bound.

local kind = redis.call('HGET', KEYS[1], ARGV[1])
if not kind then return 0 end
local queues = redis.call('SMEMBERS', kind == 'fanout' and KEYS[2] or KEYS[3])
local delay = tonumber(ARGV[3])
local due = delay > 0 and due_after(delay)

for _, queue in ipairs(queues) do
  local base = ARGV[2] .. queue
  -- Where a message of this rank is ready, the bell has rung for it, and whoever waited is on
  -- the way. For what is delayed it rings always: who waits must know the new time.
  local rings = due
    or redis.call('XLEN', base .. ':' .. ARGV[5]) <= redis.call('ZCARD', base .. ':leases')
  for i = 4, #ARGV, 5 do
    local id, rank = ARGV[i], ARGV[i + 1]
    if not queued(base, id) then
      if due then
        postpone(base, rank, id, 0, due, {
          'body', ARGV[i + 4], 'id', id, 'submitted_at', ARGV[i + 2], 'schema', ARGV[i + 3]})
      else
        local entry = redis.call(
          'XADD', base .. ':' .. rank, '*',
          'body', ARGV[i + 4], 'id', id, 'submitted_at', ARGV[i + 2], 'schema', ARGV[i + 3])
        redis.call('HSET', base .. ':ids', id, rank .. '/' .. entry)
      end
    end
  end
  if rings then ring(base) end
end
return #queues
