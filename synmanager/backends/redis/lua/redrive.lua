-- Put dead letters back, oldest first, as if they had never been delivered.
-- KEYS: base. ARGV: where to start, how many to look at, then the ids of those that are meant; all
-- are if none is given. Returns {how many, the last one looked at or ''}.
-- A letter whose id is queued again stays where it is: two jobs of one id would be taken for one.
-- So does an entry that bury.lua did not write.
local base, moved, last = KEYS[1], 0, ''
local all, meant = #ARGV == 2, {}
for i = 3, #ARGV do meant[ARGV[i]] = true end
for _, letter in ipairs(redis.call('XRANGE', base .. ':dead', ARGV[1], '+', 'COUNT', ARGV[2])) do
  local fields = letter[2]
  local rank, id = fields[2], fields[4]
  last = letter[1]
  local ours = fields[1] == 'rank' and RANK[rank] and fields[11] == 'traceback'
  if ours and (all or meant[id]) and not place_of(base, id) then
    enqueue(base, rank, id, 0, fields, 13)
    redis.call('XDEL', base .. ':dead', last)
    moved = moved + 1
  end
end
if moved > 0 then ring(base) end
return {moved, last}
