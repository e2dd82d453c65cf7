-- read_seat: one user's seat.
--
-- Guarantee: writes nothing.
--
-- KEYS[1] coupon:issue:{id}    sorted set: user by admission time in microseconds
-- KEYS[2] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
-- KEYS[3] coupon:pending:{id}  sorted set: user by deadline in microseconds
--
-- ARGV[1] user
--
-- Returns {} none, else {held, admission time, pending}.

local issueKey = KEYS[1]
local slotKey = KEYS[2]
local pendingKey = KEYS[3]
local user = ARGV[1]

local held = redis.call('HGET', slotKey, user)
if not held then
  return {}
end
return {held, redis.call('ZSCORE', issueKey, user) or '0', redis.call('ZSCORE', pendingKey, user) and 1 or 0}
