-- Append a letter to the dead ones. KEYS: base. ARGV: its fields. Returns how many fields it has.
redis.call('XPENDING', KEYS[1] .. ':high', GROUP) -- NOGROUP where there is no queue
redis.call('XADD', KEYS[1] .. ':dead', '*', unpack(ARGV))
return #ARGV
