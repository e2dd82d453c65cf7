-- read_stock: a campaign's numbers, all of one moment.
--
-- Guarantee: writes nothing. Keys that contradict each other (one of them was deleted from outside) are reported as
--   broken, because decisions made from them would be wrong.
--
-- KEYS[1] coupon:meta:{id}     hash: state, limit, issueFrom, issueUntil, epoch, slotSeq, ordinal, clock, rebuilding
-- KEYS[2] coupon:issue:{id}    sorted set: user by admission time in microseconds
-- KEYS[3] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
-- KEYS[4] coupon:free:{id}     sorted set: released slots by number
-- KEYS[5] coupon:pending:{id}  sorted set: user by deadline in microseconds
--
-- Returns {} not known, else {state, limit, epoch, slotSeq, admitted, pending, free}; state is rebuilding during a
--   rebuild, broken when keys contradict each other.

local metaKey = KEYS[1]
local issueKey = KEYS[2]
local slotKey = KEYS[3]
local freeKey = KEYS[4]
local pendingKey = KEYS[5]

local meta = redis.call('HMGET', metaKey, 'state', 'limit', 'epoch', 'slotSeq', 'rebuilding')
local state = meta[1]
if not state then
  return {}
end
local admitted = redis.call('ZCARD', issueKey)
local pending = redis.call('ZCARD', pendingKey)
local free = redis.call('ZCARD', freeKey)
if meta[5] then
  state = 'rebuilding'
elseif redis.call('HLEN', slotKey) ~= admitted or admitted + free ~= tonumber(meta[4]) or pending > admitted then
  -- Every member has a slot, and every slot handed out is held or free.
  state = 'broken'
end
return {state, meta[2], meta[3], meta[4], admitted, pending, free}
