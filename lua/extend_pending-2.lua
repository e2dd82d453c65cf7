-- extend_pending: gives a pending seat one lease more.
--
-- Guarantee: only the holder of the stored token extends; a confirmed seat does not become pending again.
--
-- KEYS[1] coupon:pending:{id}  sorted set: user by deadline in microseconds
-- KEYS[2] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
--
-- ARGV[1] user
-- ARGV[2] token, 32 hexadecimal digits
-- ARGV[3] lease in microseconds
--
-- Returns 1 extended, 0 not pending with this token.

local pendingKey = KEYS[1]
local slotKey = KEYS[2]
local user = ARGV[1]
local token = ARGV[2]
local lease = tonumber(ARGV[3])

if #token ~= 32 or not lease or lease < 1 then
  return redis.error_reply('BADARG token must be 32 hexadecimal digits and lease positive')
end

local held = redis.call('HGET', slotKey, user)
if not held or string.sub(held, -32) ~= token or not redis.call('ZSCORE', pendingKey, user) then
  return 0
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
redis.call('ZADD', pendingKey, string.format('%.0f', now + lease), user)
return 1
