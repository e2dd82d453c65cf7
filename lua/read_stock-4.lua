-- read_stock: a campaign's numbers, all of one moment.
--
-- Guarantee: writes nothing.
--
-- KEYS[1] coupon:meta:{id}     hash: state, limit, issueFrom, issueUntil, epoch, slotSeq, ordinal, clock, rebuilding
-- KEYS[2] coupon:issue:{id}    sorted set: user by admission time in microseconds
-- KEYS[3] coupon:free:{id}     sorted set: released slots by number
-- KEYS[4] coupon:pending:{id}  sorted set: user by deadline in microseconds
--
-- Returns {} not known, else {state, limit, epoch, slotSeq, admitted, pending, free}; state is rebuilding during a
--   rebuild.

local metaKey = KEYS[1]
local issueKey = KEYS[2]
local freeKey = KEYS[3]
local pendingKey = KEYS[4]

local meta = redis.call('HMGET', metaKey, 'state', 'limit', 'epoch', 'slotSeq', 'rebuilding')
if not meta[1] then
  return {}
end
return {meta[5] and 'rebuilding' or meta[1], meta[2], meta[3], meta[4], redis.call('ZCARD', issueKey),
  redis.call('ZCARD', pendingKey), redis.call('ZCARD', freeKey)}
