-- Look at what is delayed. KEYS: base. ARGV: how many at most.
-- Returns for each in how many milliseconds it is due, its entry, and the fields of that.
local base, now, shown = KEYS[1], milliseconds(), {}
redis.call('XPENDING', base .. ':high', GROUP) -- NOGROUP where there is no queue
local due = redis.call('ZRANGE', base .. ':due', 0, ARGV[1] - 1, 'WITHSCORES')
for i = 1, #due, 2 do
  local entry = unpad(due[i])
  local fields = entry and entry_of(base .. ':delayed', entry)
  if fields then shown[#shown + 1] = {math.ceil(tonumber(due[i + 1]) - now), entry, fields} end
end
return shown
