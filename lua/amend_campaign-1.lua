-- amend_campaign: changes the state, the limit or the window of a known campaign.
--
-- Guarantee: a campaign that is not known stays unknown; members keep their seats whatever the limit becomes. During
--   a rebuild the new values are kept for when it finishes.
--
-- KEYS[1] coupon:meta:{id}     hash: state, limit, issueFrom, issueUntil, epoch, slotSeq, ordinal, clock, rebuilding
--
-- ARGV[1] state: open, paused or closed; empty leaves it
-- ARGV[2] limit; empty leaves it
-- ARGV[3] issueFrom in microseconds, 0 for none; empty leaves it
-- ARGV[4] issueUntil in microseconds, 0 for none; empty leaves it
--
-- Returns 1 changed, 0 not known.

local metaKey = KEYS[1]
local state = ARGV[1]

if state ~= '' and state ~= 'open' and state ~= 'paused' and state ~= 'closed' then
  return redis.error_reply('BADARG state must be open, paused or closed')
end
for i = 2, 4 do
  if not string.find(ARGV[i], '^%d*$') then
    return redis.error_reply('BADARG limit, issueFrom and issueUntil must be whole numbers')
  end
end

if redis.call('HEXISTS', metaKey, 'state') == 0 then
  return 0
end
local fields = {'state', 'limit', 'issueFrom', 'issueUntil'}
for i = 1, 4 do
  if ARGV[i] ~= '' then
    redis.call('HSET', metaKey, fields[i], ARGV[i])
  end
end
return 1
