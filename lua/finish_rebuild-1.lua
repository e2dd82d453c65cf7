-- finish_rebuild: the campaign decides again, from the members loaded.
--
-- Guarantee: only the rebuild of this very epoch finishes.
--
-- KEYS[1] coupon:meta:{id}     hash: state, limit, issueFrom, issueUntil, epoch, slotSeq, ordinal, clock, rebuilding
--
-- ARGV[1] epoch
--
-- Returns 1 finished, 0 another rebuild took over.

local metaKey = KEYS[1]
local epoch = ARGV[1]

local stored = redis.call('HMGET', metaKey, 'epoch', 'rebuilding')
if stored[1] ~= epoch or not stored[2] then
  return 0
end
redis.call('HDEL', metaKey, 'rebuilding')
return 1
