-- begin_rebuild: forgets a campaign and stops its admissions until finish_rebuild, under a higher epoch.
--
-- Guarantee: an epoch that is not above the stored one changes nothing. From here to the finish nobody is admitted.
--   The clock floor never goes back.
--
-- KEYS[1] coupon:meta:{id}     hash: state, limit, issueFrom, issueUntil, epoch, slotSeq, ordinal, clock, rebuilding
-- KEYS[2] coupon:issue:{id}    sorted set: user by admission time in microseconds
-- KEYS[3] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
-- KEYS[4] coupon:free:{id}     sorted set: released slots by number
-- KEYS[5] coupon:pending:{id}  sorted set: user by deadline in microseconds
--
-- ARGV[1] state: open, paused or closed
-- ARGV[2] limit
-- ARGV[3] issueFrom in microseconds, 0 for none
-- ARGV[4] issueUntil in microseconds, 0 for none
-- ARGV[5] epoch
-- ARGV[6] slotSeq: the highest slot that a member holds
-- ARGV[7] ordinal: the number of members
-- ARGV[8] clock: the last member's admission time in microseconds
--
-- Returns {1} begun, {0, epoch} that epoch is stored.

local metaKey = KEYS[1]
local issueKey = KEYS[2]
local slotKey = KEYS[3]
local freeKey = KEYS[4]
local pendingKey = KEYS[5]
local state = ARGV[1]

if state ~= 'open' and state ~= 'paused' and state ~= 'closed' then
  return redis.error_reply('BADARG state must be open, paused or closed')
end
for i = 2, 8 do
  if not string.find(ARGV[i], '^%d+$') then
    return redis.error_reply('BADARG limit, window, epoch, slotSeq, ordinal and clock must be whole numbers')
  end
end

local stored = redis.call('HMGET', metaKey, 'epoch', 'clock')
if stored[1] and tonumber(stored[1]) >= tonumber(ARGV[5]) then
  return {0, stored[1]}
end
local clock = math.max(tonumber(stored[2] or '0'), tonumber(ARGV[8]))
redis.call('UNLINK', metaKey, issueKey, slotKey, freeKey, pendingKey)
redis.call('HSET', metaKey, 'state', state, 'limit', ARGV[2], 'issueFrom', ARGV[3], 'issueUntil', ARGV[4],
  'epoch', ARGV[5], 'slotSeq', ARGV[6], 'ordinal', ARGV[7], 'clock', string.format('%.0f', clock),
  'rebuilding', '1')
return {1}
