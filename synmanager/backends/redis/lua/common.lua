-- Stands before every script of this directory.
--
-- A queue is a family of keys that begin with the same base, "{prefix}:queue:<name>":
--   :high :normal :low   streams, one for each rank, with one consumer group
--   :delayed :due        a stream of what is not due yet; its entries by due time
--   :leases              who holds what: "<rank>/<entry>/<lease ms>/<token>" by expiry
--   :ids                 message id -> "<stream>/<entry>", while it is queued, delayed or leased
--   :dead                a stream of dead letters
--   :bell                a stream with a consumer group: who reads an entry of it is to look
--
-- All times are the server's, in milliseconds. The group has two consumers: `leased` for what
-- somebody holds and `released` for what nobody holds any more, which comes first, oldest first.
-- Who holds an entry, and until when, only :leases tells: the group's own idle times would be
-- judged by each claimer's idea of a lease. The group counts the deliveries.

local GROUP, LEASED, RELEASED = 'synmanager', 'leased', 'released'
local RANKS = {'high', 'normal', 'low'}

local function milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- When what waits from now on is due: never early, though the milliseconds of now are cut off.
local function due_after(delay)
  return milliseconds() + 1 + delay
end

-- End the script because of what no version of this project wrote. The answer is NOGROUP, as for a
-- queue of which somebody deleted parts: then mend.lua runs, and the script once more.
local function broken(base)
  redis.call('XPENDING', base .. ':broken', GROUP)
end

-- Wake some of those who wait for a queue: each entry is read by one, who has waited longest. Two,
-- as a rule, in case that one of them is frozen, or gone.
local function ring(base, waiters)
  for _ = 1, waiters or 2 do
    -- It holds nothing that anybody needs. If it is no stream, or one that is at its end, a new
    -- one does as well.
    local rung = redis.pcall('XADD', base .. ':bell', 'MAXLEN', 2, '*', 'ring', '')
    if type(rung) == 'table' and rung.err then
      redis.call('DEL', base .. ':bell')
      redis.call('XGROUP', 'CREATE', base .. ':bell', GROUP, '0', 'MKSTREAM')
      redis.call('XADD', base .. ':bell', 'MAXLEN', 1, '*', 'ring', '')
    end
  end
end

local function get(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- The fields of an entry; nil if there is none, or its id is none.
local function entry_of(key, id)
  local found = redis.pcall('XRANGE', key, id, id)
  if found.err then
    redis.call('XLEN', key) -- if the key is no stream, that is the error
    return nil
  end
  return found[1] and found[1][2]
end

local STREAMS = {high = true, normal = true, low = true, delayed = true}

-- Where the index says that a message lies, if it does: its stream, its entry. The index alone is
-- not believed: an entry that somebody deleted would swallow its successor, and one of another id
-- be taken for it.
local function place_of(base, id)
  local stream, entry = string.match(redis.call('HGET', base .. ':ids', id) or '', '^(%a+)/(.+)$')
  if not stream or not STREAMS[stream] then return nil end
  local fields = entry_of(base .. ':' .. stream, entry)
  if fields and get(fields, 'id') == id then return stream, entry end
end

-- Take a message out of the index, unless that has another one of this id.
local function forget(base, id, stream, entry)
  if redis.call('HGET', base .. ':ids', id) == stream .. '/' .. entry then
    redis.call('HDEL', base .. ':ids', id)
  end
end

local RANK = {high = true, normal = true, low = true}

-- Ten years, in milliseconds. No lease is longer.
local FOR_EVER = 3e11

-- A lease's rank, entry and length. What does not look like a lease has none of them.
local function parse(lease)
  local rank, entry, length = string.match(lease, '^(%a+)/(%d+%-%d+)/(%d+)/')
  if not rank or not RANK[rank] or tonumber(length) > FOR_EVER then return nil end
  return rank, entry, tonumber(length)
end

-- Append `head` and the fields from number `first` on, without those named in `without`.
local function append(key, head, fields, first, without)
  -- unpack() gives up at 8,000 values. A foreign entry of that size is kept as one value; it
  -- then has no body and is treated as the defect it is.
  if #fields - first > 7000 then fields, first = {'packed', cmsgpack.pack(fields)}, 1 end
  local all = {}
  for i = 1, #head do all[i] = head[i] end
  for i = first, #fields, 2 do
    if not (without and without[fields[i]]) then
      all[#all + 1] = fields[i]
      all[#all + 1] = fields[i + 1]
    end
  end
  return redis.call('XADD', key, '*', unpack(all))
end

-- Append a message to a rank, keeping its raw fields from number `first` on.
local function enqueue(base, rank, id, attempts, fields, first)
  redis.call('HLEN', base .. ':ids') -- if it is no index, end before anything is done
  local head = {}
  if attempts > 0 then head = {'attempts', attempts} end
  -- A foreign message was known by an id made of its old place: it keeps it.
  local named = false
  for i = first, #fields, 2 do named = named or fields[i] == 'id' end
  if not named then head[#head + 1] = 'id'; head[#head + 1] = id end
  local entry = append(base .. ':' .. rank, head, fields, first, {attempts = true})
  redis.call('HSET', base .. ':ids', id, rank .. '/' .. entry)
end

-- Equal scores sort by the bytes of the member: padded, entry 10 comes after entry 9.
local function pad(entry)
  local time, sequence = string.match(entry, '^(%d+)%-(%d+)$')
  return time .. '-' .. string.rep('0', 20 - #sequence) .. sequence
end

-- The entry of a member of :due; nil for what is none.
local function unpad(member)
  local time, sequence = string.match(member, '^(%d+)%-0*(%d+)$')
  return time and time .. '-' .. sequence
end

-- The fields of :delayed begin with these three pairs; then come the message's own.
local function postpone(base, rank, id, attempts, due, fields)
  redis.call('HLEN', base .. ':ids') -- as in enqueue()
  redis.call('ZCARD', base .. ':due')
  local entry = append(base .. ':delayed', {'rank', rank, 'id', id, 'attempts', attempts}, fields, 1)
  redis.call('ZADD', base .. ':due', due, pad(entry))
  redis.call('HSET', base .. ':ids', id, 'delayed/' .. entry)
end

local function promote(base, now)
  -- Bounded, so that a million that are due at once do not stop the server; the rest follows.
  local due = redis.call('ZRANGEBYSCORE', base .. ':due', '-inf', now, 'LIMIT', 0, 1000)
  for _, member in ipairs(due) do
    local entry = unpad(member)
    if not entry then broken(base) end
    local fields = entry_of(base .. ':delayed', entry)
    if fields then
      local attempts = tonumber(fields[6])
      if RANK[fields[2]] and fields[3] == 'id' and fields[5] == 'attempts' and attempts then
        enqueue(base, fields[2], fields[4], attempts, fields, 7)
      else -- a stranger's, and a message by what it has
        append(base .. ':normal', {}, fields, 1)
      end
      redis.call('XDEL', base .. ':delayed', entry)
    end
    redis.call('ZREM', base .. ':due', member)
  end
  return #due
end

-- Put what a lease holds where the next receive finds it first. Where somebody destroyed the
-- group, ending the lease is enough: mend.lua does the rest.
local function release(base, lease, deliveries)
  local rank, entry = parse(lease)
  if rank then
    local key = base .. ':' .. rank
    if deliveries then
      redis.pcall('XCLAIM', key, GROUP, RELEASED, 0, entry, 'JUSTID', 'RETRYCOUNT', deliveries)
    else
      redis.pcall('XCLAIM', key, GROUP, RELEASED, 0, entry, 'JUSTID')
    end
  end
  redis.call('ZREM', base .. ':leases', lease)
end

-- How far the caller trusts this server's clock: `now` against what it expects, give or take
-- `tolerance`, and for how long it has seen the clock go right. -1 for not at all.
local function trust(now, expected, tolerance, trusted)
  if math.abs(now - expected) > tonumber(tolerance) then return -1 end
  return tonumber(trusted)
end

-- Do what time has made due: promote the delayed, take back what the dead held. Returns when
-- there is more to do, if that is known; and if a lease seems to have run out and is not believed
-- to have, for how long the caller would have to have watched the clock.
--
-- An expired lease is believed only by who has watched the clock for half of that lease: a live
-- holder renews within a third of it, and so survives a clock that jumped.
local function catch_up(base, now, trusted)
  local wake, doubt
  local found = 0
  local first = redis.call('ZRANGE', base .. ':due', 0, 0, 'WITHSCORES')
  if first[1] and tonumber(first[2]) <= now then
    found = promote(base, now)
    first = redis.call('ZRANGE', base .. ':due', 0, 0, 'WITHSCORES')
  end
  if first[1] then wake = tonumber(first[2]) end
  first = redis.call('ZRANGE', base .. ':leases', 0, 0, 'WITHSCORES')
  if first[1] and tonumber(first[2]) > now then
    wake = math.min(wake or math.huge, tonumber(first[2]))
  elseif first[1] then
    local expired = redis.call('ZRANGEBYSCORE', base .. ':leases', '-inf', now, 'LIMIT', 0, 1000)
    for _, lease in ipairs(expired) do
      local rank, _, length = parse(lease)
      if not rank then broken(base) end
      local enough = math.ceil(length / 2)
      if trusted >= enough then
        release(base, lease)
        found = found + 1
      else
        doubt = math.min(doubt or math.huge, enough)
      end
    end
  end
  if found > 1 then ring(base) end -- one is the caller's
  return wake, doubt
end

-- The answer to a settlement by who does not hold the lease: 0, or -1 if the entry is gone too.
local function not_held(base, lease)
  local rank, entry = parse(lease)
  return entry_of(base .. ':' .. rank, entry) and 0 or -1
end

local function remove(base, rank, entry)
  -- What somebody put in the place of the stream has no such entry any more.
  redis.pcall('XACK', base .. ':' .. rank, GROUP, entry)
  redis.pcall('XDEL', base .. ':' .. rank, entry)
end

-- End a lease and remove its entry, once that has been taken care of.
local function finish(base, lease, rank, entry)
  redis.call('ZREM', base .. ':leases', lease)
  remove(base, rank, entry)
end

-- Settle a delivery whose job is done. Returns 1, or what not_held() returns.
local function ack(base, lease, id)
  local place = redis.call('HGET', base .. ':ids', id)
  if redis.call('ZREM', base .. ':leases', lease) == 0 then return not_held(base, lease) end
  local rank, entry = parse(lease)
  remove(base, rank, entry)
  if place == rank .. '/' .. entry then redis.call('HDEL', base .. ':ids', id) end
  return 1
end
