-- confirm_seat: the ledger holds the row, so the seat is no longer pending.
--
-- Guarantee: only the holder of the stored token confirms; repeating changes nothing.
--
-- KEYS[1] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
-- KEYS[2] coupon:pending:{id}  sorted set: user by deadline in microseconds
--
-- ARGV[1] user
-- ARGV[2] token, 32 hexadecimal digits
--
-- Returns 1 confirmed, 0 the user holds no seat with this token.

local slotKey = KEYS[1]
local pendingKey = KEYS[2]
local user = ARGV[1]
local token = ARGV[2]

if #token ~= 32 then
  return redis.error_reply('BADARG token must be 32 hexadecimal digits')
end

local held = redis.call('HGET', slotKey, user)
if not held or string.sub(held, -32) ~= token then
  return 0
end
redis.call('ZREM', pendingKey, user)
return 1
