-- Give a dead letter another body: in a copy, as no entry of a stream can be changed.
-- KEYS: base. ARGV: the letter, the body. Returns 1, or 0 if it is gone.
local key = KEYS[1] .. ':dead'
local fields = entry_of(key, ARGV[1])
if not fields then return 0 end
local there = false
for i = 1, #fields, 2 do
  if fields[i] == 'body' then fields[i + 1], there = ARGV[2], true end
end
if not there then
  fields[#fields + 1] = 'body'
  fields[#fields + 1] = ARGV[2]
end
append(key, {}, fields, 1)
redis.call('XDEL', key, ARGV[1])
return 1
