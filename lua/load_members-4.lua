-- load_members: adds a portion of the ledger's rows, and of the slots nobody holds, to a campaign being rebuilt.
--
-- Guarantee: writes only while the rebuild of this very epoch is under way. Repeating a portion changes nothing.
--
-- KEYS[1] coupon:meta:{id}     hash: state, limit, issueFrom, issueUntil, epoch, slotSeq, ordinal, clock, rebuilding
-- KEYS[2] coupon:issue:{id}    sorted set: user by admission time in microseconds
-- KEYS[3] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
-- KEYS[4] coupon:free:{id}     sorted set: released slots by number
--
-- ARGV[1] epoch
-- ARGV[2] number of members m
-- ARGV[3] user of the first member, then its admission time and its slot:ordinal:epoch:token; 3 m values in all, then
--         the free slots
--
-- Returns 1 loaded, 0 another rebuild took over.

local metaKey = KEYS[1]
local issueKey = KEYS[2]
local slotKey = KEYS[3]
local freeKey = KEYS[4]
local epoch = ARGV[1]
local members = tonumber(ARGV[2])

if not members or #ARGV < 2 + 3 * members then
  return redis.error_reply('BADARG fewer members than announced')
end
for i = 3 + 3 * members, #ARGV do
  if not string.find(ARGV[i], '^[1-9]%d*$') then
    return redis.error_reply('BADARG a slot must be a positive whole number')
  end
end

local stored = redis.call('HMGET', metaKey, 'epoch', 'rebuilding')
if stored[1] ~= epoch or not stored[2] then
  return 0
end
for i = 3, 2 + 3 * members, 3 do
  redis.call('ZADD', issueKey, ARGV[i + 1], ARGV[i])
  redis.call('HSET', slotKey, ARGV[i], ARGV[i + 2])
end
for i = 3 + 3 * members, #ARGV do
  redis.call('ZADD', freeKey, ARGV[i], ARGV[i])
end
return 1
