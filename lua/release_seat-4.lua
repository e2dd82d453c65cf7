-- release_seat: the ledger said a definite no, so the slot is free again.
--
-- Guarantee: only the holder of the stored token releases; every other call writes nothing.
--
-- KEYS[1] coupon:issue:{id}    sorted set: user by admission time in microseconds
-- KEYS[2] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
-- KEYS[3] coupon:free:{id}     sorted set: released slots by number
-- KEYS[4] coupon:pending:{id}  sorted set: user by deadline in microseconds
--
-- ARGV[1] user
-- ARGV[2] token, 32 hexadecimal digits
--
-- Returns the slot released, or 0 when the user holds no seat with this token.

local issueKey = KEYS[1]
local slotKey = KEYS[2]
local freeKey = KEYS[3]
local pendingKey = KEYS[4]
local user = ARGV[1]
local token = ARGV[2]

if #token ~= 32 then
  return redis.error_reply('BADARG token must be 32 hexadecimal digits')
end

local held = redis.call('HGET', slotKey, user)
if not held or string.sub(held, -32) ~= token then
  return 0
end
-- A key of a wrong type fails the call here, before anything is written.
redis.call('ZSCORE', issueKey, user)
redis.call('ZSCORE', pendingKey, user)
redis.call('ZCARD', freeKey)

local slot = string.match(held, '^(%d+):')
redis.call('ZREM', issueKey, user)
redis.call('ZREM', pendingKey, user)
redis.call('HDEL', slotKey, user)
redis.call('ZADD', freeKey, slot, slot)
return tonumber(slot)
