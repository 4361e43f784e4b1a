-- Find what stands in the place of our keys. KEYS: keys. ARGV: the type that each should have.
-- Returns pairs of a key and what is wrong with it.
local misfits = {}
for number, key in ipairs(KEYS) do
  local kind, wrong = redis.call('TYPE', key).ok, nil
  if kind ~= 'none' and kind ~= ARGV[number] then
    wrong = 'is of type ' .. kind .. ', not ' .. ARGV[number]
  elseif kind == 'stream' then
    local info = redis.call('XINFO', 'STREAM', key)
    if get(info, 'last-generated-id') == '18446744073709551615-18446744073709551615' then
      wrong = 'has an entry of the last possible id, after which there can be none'
    end
  end
  if wrong then
    misfits[#misfits + 1] = key
    misfits[#misfits + 1] = wrong
  end
end
return misfits
