"""The sliding windows of a key as a script that Redis runs whole: the algorithm of frontend.limits.ring.

A hash holds, for each rule i, `it` (total), `ih` (head), `il` (last bucket charged) and `i:0` to `i:60` (buckets).
Times are in us, which a Lua number holds exactly.
"""

from __future__ import annotations

from typing import Final

WINDOWS: Final = """
local key, counted, charging = KEYS[1], 61, ARGV[1] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local rules, admitted, set, drop, expires = {}, 1, {}, {}, 0

local function left(bucket, width)
  return (bucket + counted) * width - now
end

for i = 1, 3 do
  local limit = tonumber(ARGV[3 * i - 1])
  if limit > 0 then
    local amount, width = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
    local bucket = math.floor(now / width)
    local found = redis.call('HMGET', key, i .. 't', i .. 'h', i .. 'l')
    local total, head, last = tonumber(found[1] or 0), tonumber(found[2] or bucket), tonumber(found[3] or bucket)
    if head > bucket + counted then
      -- The clock was set back by more than the window: nothing of what is here can be told to be recent.
      head = bucket - counted
    end
    if head > bucket then
      bucket = head
    end
    if total > 0 and bucket > head then
      local slots = {}
      for number = head + 1, math.min(bucket, head + counted) do
        slots[#slots + 1] = i .. ':' .. number % counted
      end
      for n, value in ipairs(redis.call('HMGET', key, unpack(slots))) do
        if value then
          total = total - value
          drop[#drop + 1] = slots[n]
        end
      end
    end
    local excess = 0
    if amount > 0 then
      excess = total + amount - limit
    end
    if excess > 0 then
      admitted = 0
    end
    rules[i] = {total = total, amount = amount, width = width, bucket = bucket, last = last, excess = excess}
  end
end

if #drop > 0 then
  redis.call('HDEL', key, unpack(drop))
end
local answer = {admitted}
for i = 1, 3 do
  local rule = rules[i]
  local reset, fits, frees = 0, 0, 0
  if rule then
    if admitted == 1 and charging and rule.amount > 0 then
      rule.total, rule.last = rule.total + rule.amount, rule.bucket
      redis.call('HINCRBY', key, i .. ':' .. rule.bucket % counted, rule.amount)
    end
    set[#set + 1], set[#set + 2] = i .. 't', string.format('%.0f', rule.total)
    set[#set + 1], set[#set + 2] = i .. 'h', string.format('%.0f', rule.bucket)
    set[#set + 1], set[#set + 2] = i .. 'l', string.format('%.0f', rule.last)
    if rule.total > 0 then
      reset = left(rule.last, rule.width)
      expires = math.max(expires, reset)
    end
    if rule.excess > rule.total then
      fits = -1
    end
    if rule.excess > 0 and rule.total > 0 then
      local slots = {}
      for number = rule.bucket - counted + 1, rule.bucket do
        slots[#slots + 1] = i .. ':' .. number % counted
      end
      local freed = 0
      for n, value in ipairs(redis.call('HMGET', key, unpack(slots))) do
        if value and tonumber(value) > 0 then
          freed = freed + value
          local gone = left(rule.bucket - counted + n, rule.width)
          if frees == 0 then
            frees = gone
          end
          if freed >= rule.excess and fits == 0 then
            fits = gone
          end
        end
      end
    end
  end
  answer[#answer + 1] = rule and rule.total or 0
  answer[#answer + 1] = reset
  answer[#answer + 1] = fits
  answer[#answer + 1] = frees
end
if expires > 0 then
  redis.call('HSET', key, unpack(set))
  redis.call('PEXPIRE', key, math.ceil(expires / 1000))
else
  redis.call('DEL', key)
end
return answer
"""
