-- KEYS: the exchanges, the queues, then for a queue its route. ARGV: exchange, type, queue.
-- Returns the exchange's type, which is another one if it was there before.
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
local kind = redis.call('HGET', KEYS[1], ARGV[1])
if kind == ARGV[2] and ARGV[3] then
  redis.call('SADD', KEYS[2], ARGV[3])
  redis.call('SADD', KEYS[3], ARGV[3])
end
return kind
