-- admit_seat: gives each claimant a seat, or says why not.
--
-- Guarantee: one atomic decision per claim, in the order given. A refusal writes nothing. A campaign without a meta
--   hash, or one being rebuilt, admits nobody. A claim repeated with its token gets its first answer again.
--   Admission times are this server's clock, strictly increasing by a floor. No key gets a time to live.
--
-- KEYS[1] coupon:meta:{id}     hash: state, limit, issueFrom, issueUntil, epoch, slotSeq, ordinal, clock, rebuilding
-- KEYS[2] coupon:issue:{id}    sorted set: user by admission time in microseconds
-- KEYS[3] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
-- KEYS[4] coupon:free:{id}     sorted set: released slots by number
-- KEYS[5] coupon:pending:{id}  sorted set: user by deadline in microseconds
--
-- ARGV[1] lease in microseconds: an admitted seat is pending until now + lease
-- ARGV[2] user of the first claim; ARGV[4], ARGV[6], ... those of the next
-- ARGV[3] token of the first claim, 32 hexadecimal digits; ARGV[5], ARGV[7], ... those of the next
--
-- Returns one array per claim: {n, held, time} admitted as the n-th, {0} sold out, {-1, held, time, pending} the user
--   holds a seat of another token, {-2, issueFrom} not started, {-3} ended, {-4} paused, {-5} not ready.

local metaKey = KEYS[1]
local issueKey = KEYS[2]
local slotKey = KEYS[3]
local freeKey = KEYS[4]
local pendingKey = KEYS[5]
local lease = tonumber(ARGV[1])

if not lease or lease < 1 then
  return redis.error_reply('BADARG lease must be a positive number of microseconds')
end
if #ARGV < 3 or #ARGV % 2 == 0 then
  return redis.error_reply('BADARG claims must be pairs of user and token')
end
for i = 2, #ARGV, 2 do
  if not string.find(ARGV[i], '^[1-9]%d*$') then
    return redis.error_reply('BADARG user must be a positive whole number')
  end
  if not string.find(ARGV[i + 1], '^%x+$') or #ARGV[i + 1] ~= 32 then
    return redis.error_reply('BADARG token must be 32 hexadecimal digits')
  end
end

local replies = {}
local meta = redis.call('HMGET', metaKey, 'state', 'limit', 'issueFrom', 'issueUntil', 'epoch', 'slotSeq',
  'ordinal', 'clock', 'rebuilding')
local state = meta[1]
if not state or meta[9] then
  for i = 2, #ARGV, 2 do
    replies[#replies + 1] = {-5}
  end
  return replies
end
local limit = tonumber(meta[2])
local issueFrom = tonumber(meta[3])
local issueUntil = tonumber(meta[4])
local epoch = meta[5]
local slotSeq = tonumber(meta[6])
local ordinal = tonumber(meta[7])
local clock = tonumber(meta[8])

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local admitted = false
local exhausted = false

-- The next slot, and whether it is a released one; nil when sold out. Never used slots go first, so that a released
-- one rests as long as possible: a transaction that lost its seat and commits late rarely meets its successor.
local function nextSlot()
  if slotSeq < limit then
    return slotSeq + 1, false
  end
  local lowest = redis.call('ZRANGE', freeKey, 0, 0)[1]
  -- After the limit was lowered, members above it count too: the second condition.
  if lowest and tonumber(lowest) <= limit and redis.call('ZCARD', issueKey) < limit then
    return tonumber(lowest), true
  end
  return nil, false
end

local function decide(user, token)
  local held = redis.call('HGET', slotKey, user)
  if held then
    local at = redis.call('ZSCORE', issueKey, user) or '0'
    if string.sub(held, -32) == token then
      return {tonumber(string.match(held, '^%d+:(%d+):')), held, at}
    end
    return {-1, held, at, redis.call('ZSCORE', pendingKey, user) and 1 or 0}
  end
  if state == 'closed' then
    return {-3}
  end
  if state == 'paused' then
    return {-4}
  end
  local at = math.max(now, clock + 1)
  if issueFrom > 0 and at < issueFrom then
    return {-2, meta[3]}
  end
  if issueUntil > 0 and at >= issueUntil then
    return {-3}
  end
  if exhausted then
    return {0}
  end
  local slot, released = nextSlot()
  if not slot then
    exhausted = true
    return {0}
  end
  if not admitted then
    -- The first admission of this call touches every key by a read, so that a key of a wrong type fails the call
    -- before anything is written.
    redis.call('ZSCORE', issueKey, user)
    redis.call('ZSCORE', pendingKey, user)
    redis.call('ZCARD', freeKey)
    admitted = true
  end
  ordinal = ordinal + 1
  clock = at
  held = string.format('%.0f:%.0f:%s:%s', slot, ordinal, epoch, token)
  local atText = string.format('%.0f', at)
  redis.call('ZADD', issueKey, atText, user)
  redis.call('ZADD', pendingKey, string.format('%.0f', at + lease), user)
  redis.call('HSET', slotKey, user, held)
  if released then
    redis.call('ZREM', freeKey, string.format('%.0f', slot))
  else
    slotSeq = slot
  end
  return {ordinal, held, atText}
end

for i = 2, #ARGV, 2 do
  replies[#replies + 1] = decide(ARGV[i], ARGV[i + 1])
end
if admitted then
  redis.call('HSET', metaKey, 'slotSeq', string.format('%.0f', slotSeq), 'ordinal', string.format('%.0f', ordinal),
    'clock', string.format('%.0f', clock))
end
return replies
