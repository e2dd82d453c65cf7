-- read_members: members in the order of their admission, a page at a time.
--
-- Guarantee: writes nothing. Admission times are unique, so the last one is a sound cursor.
--
-- KEYS[1] coupon:issue:{id}    sorted set: user by admission time in microseconds
-- KEYS[2] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
-- KEYS[3] coupon:pending:{id}  sorted set: user by deadline in microseconds
--
-- ARGV[1] admission time after which to begin
-- ARGV[2] how many at most
--
-- Returns an array of {user, held, admission time, pending}; held is empty where the slot hash lacks the user.

local issueKey = KEYS[1]
local slotKey = KEYS[2]
local pendingKey = KEYS[3]
local after = ARGV[1]
local max = ARGV[2]

if not string.find(after, '^%d+$') or not string.find(max, '^[1-9]%d*$') then
  return redis.error_reply('BADARG cursor and maximum must be whole numbers')
end

local found = redis.call('ZRANGEBYSCORE', issueKey, '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, max)
local members = {}
for i = 1, #found, 2 do
  local user = found[i]
  members[#members + 1] = {user, redis.call('HGET', slotKey, user) or '', found[i + 1],
    redis.call('ZSCORE', pendingKey, user) and 1 or 0}
end
return members
