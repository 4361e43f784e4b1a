-- Remove what is ready or delayed, and spare what is leased.
-- KEYS: base. ARGV: how many at most. Returns how many; fewer than the most means all.
local base, limit = KEYS[1], tonumber(ARGV[1])
local leased, removed = {}, 0
for _, lease in ipairs(redis.call('ZRANGE', base .. ':leases', 0, -1)) do
  leased[string.match(lease, '^%a+/%d+%-%d+') or ''] = true
end
for _, stream in ipairs({'high', 'normal', 'low', 'delayed'}) do
  local key, start = base .. ':' .. stream, '-'
  repeat
    -- A few at a time: each comes with its body.
    local page = redis.call('XRANGE', key, start, '+', 'COUNT', 10)
    for _, found in ipairs(page) do
      local entry, id = found[1], get(found[2], 'id')
      start = '(' .. entry
      if not leased[stream .. '/' .. entry] and removed < limit then
        if stream == 'delayed' then
          redis.call('ZREM', base .. ':due', pad(entry))
        else
          redis.call('XACK', key, GROUP, entry)
        end
        redis.call('XDEL', key, entry)
        if id then forget(base, id, stream, entry) end
        removed = removed + 1
      end
    end
  until #page == 0 or removed == limit
end
return removed
