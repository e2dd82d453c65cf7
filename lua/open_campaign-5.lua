-- open_campaign: makes a campaign known that has no rows in the ledger, or sets the terms of a known one.
--
-- Guarantee: a campaign known in the same epoch keeps its members; one known in another epoch is left alone. A campaign
--   that is not known starts empty: what other keys of it remain is dropped.
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
--
-- Returns {1} done, {0, epoch} known in that other epoch.

local metaKey = KEYS[1]
local issueKey = KEYS[2]
local slotKey = KEYS[3]
local freeKey = KEYS[4]
local pendingKey = KEYS[5]
local state = ARGV[1]

if state ~= 'open' and state ~= 'paused' and state ~= 'closed' then
  return redis.error_reply('BADARG state must be open, paused or closed')
end
for i = 2, 5 do
  if not string.find(ARGV[i], '^%d+$') then
    return redis.error_reply('BADARG limit, issueFrom, issueUntil and epoch must be whole numbers')
  end
end

local epoch = redis.call('HGET', metaKey, 'epoch')
if epoch and epoch ~= ARGV[5] then
  return {0, epoch}
end
if not epoch then
  redis.call('UNLINK', metaKey, issueKey, slotKey, freeKey, pendingKey)
  redis.call('HSET', metaKey, 'epoch', ARGV[5], 'slotSeq', '0', 'ordinal', '0', 'clock', '0')
end
redis.call('HSET', metaKey, 'state', state, 'limit', ARGV[2], 'issueFrom', ARGV[3], 'issueUntil', ARGV[4])
return {1}
