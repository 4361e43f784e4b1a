-- Put messages in every queue that is bound to a route.
-- KEYS: the exchanges, the queues, the exchange's fanout route, its route for this key.
-- ARGV: exchange, what a queue's base begins with, delay, then for each message
-- id, rank, submitted_at, schema, headers, body.
-- Returns how many queues are bound, and how many messages none of them took.

local kind = redis.call('HGET', KEYS[1], ARGV[1])
if not kind then return {0, 0} end
local queues = {}
for _, queue in ipairs(redis.call('SMEMBERS', kind == 'fanout' and KEYS[3] or KEYS[4])) do
  -- Nobody would ever look into one that was not declared.
  if redis.call('SISMEMBER', KEYS[2], queue) == 1 then queues[#queues + 1] = queue end
end
local delay = tonumber(ARGV[3])
local due = delay > 0 and due_after(delay)
local taken, repeats = {}, 0

for _, queue in ipairs(queues) do
  local base = ARGV[2] .. queue
  -- Where a message of this rank is ready, the bell has rung for it, and whoever it woke wakes the
  -- next one. For what is delayed it rings always: somebody who waits must know the new time.
  local rings = due
    or redis.call('XLEN', base .. ':' .. ARGV[5]) <= redis.call('ZCARD', base .. ':leases')
  for i = 4, #ARGV, 6 do
    local id, rank = ARGV[i], ARGV[i + 1]
    if not place_of(base, id) then
      taken[i] = true
      local fields = {
        'body', ARGV[i + 5], 'id', id, 'submitted_at', ARGV[i + 2], 'schema', ARGV[i + 3]}
      if ARGV[i + 4] ~= '' then
        fields[9], fields[10] = 'headers', ARGV[i + 4]
      end
      if due then
        postpone(base, rank, id, 0, due, fields)
      else
        local entry = redis.call('XADD', base .. ':' .. rank, '*', unpack(fields))
        redis.call('HSET', base .. ':ids', id, rank .. '/' .. entry)
      end
    end
  end
  if rings then ring(base) end
end
for i = 4, #ARGV, 6 do
  if not taken[i] then repeats = repeats + 1 end
end
return {#queues, repeats}
