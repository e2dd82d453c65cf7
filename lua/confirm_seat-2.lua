-- confirm_seat: the ledger holds the rows, so the seats are no longer pending.
--
-- Guarantee: only the holder of the stored token confirms; repeating changes nothing.
--
-- KEYS[1] coupon:slot:{id}     hash: user -> slot:ordinal:epoch:token
-- KEYS[2] coupon:pending:{id}  sorted set: user by deadline in microseconds
--
-- ARGV[1] user of the first seat; ARGV[3], ARGV[5], ... those of the next
-- ARGV[2] token of the first seat, 32 hexadecimal digits; ARGV[4], ARGV[6], ... those of the next
--
-- Returns one number per seat: 1 confirmed, 0 the user holds no seat with this token.

local slotKey = KEYS[1]
local pendingKey = KEYS[2]

if #ARGV == 0 or #ARGV % 2 ~= 0 then
  return redis.error_reply('BADARG seats must be pairs of user and token')
end
for i = 2, #ARGV, 2 do
  if #ARGV[i] ~= 32 then
    return redis.error_reply('BADARG token must be 32 hexadecimal digits')
  end
end

local replies = {}
for i = 1, #ARGV, 2 do
  local held = redis.call('HGET', slotKey, ARGV[i])
  if held and string.sub(held, -32) == ARGV[i + 1] then
    redis.call('ZREM', pendingKey, ARGV[i])
    replies[#replies + 1] = 1
  else
    replies[#replies + 1] = 0
  end
end
return replies
