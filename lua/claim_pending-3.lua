-- claim_pending: the seats pending past their deadline, oldest first, each for one sweeper.
--
-- Guarantee: a seat returned is not returned again before one lease has passed, so two sweepers do not meet on it.
--
-- KEYS[1] coupon:pending:{id}  sorted set: user by deadline in microseconds
-- KEYS[2] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
-- KEYS[3] coupon:issue:{id}    sorted set: user by admission time in microseconds
--
-- ARGV[1] lease in microseconds
-- ARGV[2] how many at most
--
-- Returns an array of {user, held, admission time, deadline missed}.

local pendingKey = KEYS[1]
local slotKey = KEYS[2]
local issueKey = KEYS[3]
local lease = tonumber(ARGV[1])
local max = tonumber(ARGV[2])

if not lease or lease < 1 or not max or max < 1 then
  return redis.error_reply('BADARG lease and maximum must be positive')
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local due = redis.call('ZRANGEBYSCORE', pendingKey, '-inf', string.format('%.0f', now), 'WITHSCORES', 'LIMIT', 0, max)
local claimed = {}
for i = 1, #due, 2 do
  local user = due[i]
  local held = redis.call('HGET', slotKey, user)
  if held then
    -- Each its own deadline, so that the next claim keeps the order.
    redis.call('ZADD', pendingKey, string.format('%.0f', now + lease + #claimed), user)
    claimed[#claimed + 1] = {user, held, redis.call('ZSCORE', issueKey, user) or '0', due[i + 1]}
  else
    redis.call('ZREM', pendingKey, user)
  end
end
return claimed
