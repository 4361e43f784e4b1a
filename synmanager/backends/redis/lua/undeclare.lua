-- Remove a queue, with all that is in it. What is large is freed beside all else.
-- KEYS: the queues, the queue's route, all keys of the queue. ARGV: the queue's name.
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('SREM', KEYS[2], ARGV[1])
for i = 3, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
