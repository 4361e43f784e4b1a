-- Give back whatever was leased under some tokens.
-- KEYS: bases. ARGV: 1 if those deliveries count as attempts, else 0; the tokens.
local mine = {}
for i = 2, #ARGV do mine[ARGV[i]] = true end
for _, base in ipairs(KEYS) do
  local found = false
  for _, lease in ipairs(redis.call('ZRANGE', base .. ':leases', 0, -1)) do
    if mine[string.match(lease, '([^/]*)$')] then
      local deliveries
      local rank, entry = parse(lease)
      if rank and ARGV[1] == '0' then
        local pending = redis.pcall('XPENDING', base .. ':' .. rank, GROUP, entry, entry, 1)[1]
        deliveries = pending and math.max(math.min(pending[4], 1e9) - 1, 0)
      end
      release(base, lease, deliveries)
      found = true
    end
  end
  if found then ring(base) end
end
return 1
