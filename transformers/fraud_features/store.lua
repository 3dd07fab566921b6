-- The rules of store.py's docstring, run inside Redis: a script is atomic, and a whole request is one round trip.
--
-- An entity is a string: cmsgpack of {ten, hour, day, last, days, hours, tens}, where `last` is three doubles (previous
-- seconds, lat, long; seconds -1: none) and the rest are flat lists that hold only tiles with something in them:
-- days {tile, count, cents, fraud}, hours {tile, count, cents}, tens {tile, count}. An id is a string of the 29 doubles that
-- were answered for it. Doubles go in and out as little-endian bytes, so no number is ever printed or parsed.
--
-- update: KEYS id, customer, terminal of each row, in time order. ARGV 'update', doubles {seconds, cents, lat, long} of each
--         row, seconds that an entity and that an id live. Returns {doubles of all rows, number of repeats}.
-- label:  KEYS label, customer, terminal of each row. ARGV 'label', doubles {seconds, fraud} of each row, seconds that a label
--         lives. Returns {1 or 0 for each row}.

local KEEP, DELAY = 37, 7
local AGGREGATES = 29
local nan = 0 / 0
local entities, touched = {}, {}

local function fetch(key)
  local entity = entities[key]
  if entity == nil then
    local packed = redis.call('GET', key)
    entity = packed and cmsgpack.unpack(packed) or false
    entities[key] = entity
  end
  return entity
end

local function prune(list, width, oldest)
  local kept = {}
  for i = 1, #list, width do
    if list[i] >= oldest then
      for j = i, i + width - 1 do kept[#kept + 1] = list[j] end
    end
  end
  return kept
end

local function find(list, width, tile)
  for i = #list - width + 1, 1, -width do
    if list[i] == tile then return i end
  end
  local at = #list
  list[at + 1] = tile
  for j = 2, width do list[at + j] = 0 end
  return at + 1
end

local function add(entity, seconds, cents, out)
  local day, hour, ten = math.floor(seconds / 86400), math.floor(seconds / 3600), math.floor(seconds / 600)
  if ten > entity[1] then
    entity[1] = ten
    entity[7] = prune(entity[7], 2, ten - 5)
    if hour > entity[2] then
      entity[2] = hour
      entity[6] = prune(entity[6], 3, hour - 23)
    end
    if day > entity[3] then
      entity[3] = day
      entity[5] = prune(entity[5], 4, day - KEEP + 1)
    end
  end
  local n = #out
  if day <= entity[3] - KEEP then
    for i = 1, 4 do out[n + i] = 1 end
    for i = 5, 7 do out[n + i] = cents end
    for i = 8, 13 do out[n + i] = 0 end
    return
  end
  local days, hours, tens = entity[5], entity[6], entity[7]
  local at = find(days, 4, day)
  days[at + 1] = days[at + 1] + 1
  days[at + 2] = days[at + 2] + cents
  local c7, c30, m7, m30, k1, k7, k30, f1, f7, f30 = 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
  local known = day - DELAY
  for i = 1, #days, 4 do
    local tile, count = days[i], days[i + 1]
    if tile <= day and tile > day - 30 then
      c30 = c30 + count
      m30 = m30 + days[i + 2]
      if tile > day - 7 then
        c7 = c7 + count
        m7 = m7 + days[i + 2]
      end
    end
    if tile <= known and tile > known - 30 then
      local fraud = days[i + 3]
      k30 = k30 + count
      f30 = f30 + fraud
      if tile > known - 7 then
        k7 = k7 + count
        f7 = f7 + fraud
      end
      if tile == known then
        k1 = count
        f1 = fraud
      end
    end
  end
  local c1d, m1d, c1h = 1, cents, 1
  if hour > entity[2] - 24 then
    at = find(hours, 3, hour)
    hours[at + 1] = hours[at + 1] + 1
    hours[at + 2] = hours[at + 2] + cents
    c1d, m1d = 0, 0
    for i = 1, #hours, 3 do
      if hours[i] <= hour then
        c1d = c1d + hours[i + 1]
        m1d = m1d + hours[i + 2]
      end
    end
  end
  if ten > entity[1] - 6 then
    at = find(tens, 2, ten)
    tens[at + 1] = tens[at + 1] + 1
    c1h = 0
    for i = 1, #tens, 2 do
      if tens[i] <= ten then c1h = c1h + tens[i + 1] end
    end
  end
  out[n + 1], out[n + 2], out[n + 3], out[n + 4] = c1h, c1d, c7, c30
  out[n + 5], out[n + 6], out[n + 7] = m1d, m7, m30
  out[n + 8], out[n + 9], out[n + 10] = k1, k7, k30
  out[n + 11], out[n + 12], out[n + 13] = f1, f7, f30
end

local function entity_of(key, seconds)
  local entity = fetch(key)
  if not entity then
    entity = {
      math.floor(seconds / 600), math.floor(seconds / 3600), math.floor(seconds / 86400),
      struct.pack('<ddd', -1, nan, nan), {}, {}, {},
    }
    entities[key] = entity
  end
  touched[key] = true
  return entity
end

local function save(seconds_to_live)
  for key in pairs(touched) do
    redis.call('SET', key, cmsgpack.pack(entities[key]), 'EX', seconds_to_live)
  end
end

if ARGV[1] == 'update' then
  local numbers, repeats, rows = ARGV[2], 0, {}
  local format = '<' .. string.rep('d', AGGREGATES)
  for row = 0, #KEYS / 3 - 1 do
    local id = KEYS[3 * row + 1]
    local packed = redis.call('GET', id)
    if packed then
      repeats = repeats + 1
    else
      local seconds, cents, lat, long = struct.unpack('<dddd', numbers, 32 * row + 1)
      local customer = entity_of(KEYS[3 * row + 2], seconds)
      local terminal = entity_of(KEYS[3 * row + 3], seconds)
      local out = {}
      add(customer, seconds, cents, out)
      add(terminal, seconds, cents, out)
      local last, last_lat, last_long = struct.unpack('<ddd', customer[4])
      if seconds >= last then customer[4] = struct.pack('<ddd', seconds, lat, long) end
      if last < 0 or seconds - last > KEEP * 86400 then
        last, last_lat, last_long = nan, nan, nan
      end
      out[27], out[28], out[29] = last, last_lat, last_long
      packed = struct.pack(format, unpack(out))
      redis.call('SET', id, packed, 'EX', ARGV[4])
    end
    rows[row + 1] = packed
  end
  save(ARGV[3])
  return {table.concat(rows), repeats}
end

local function label(key, day, change)
  local entity = fetch(key)
  if not entity or day <= entity[3] - KEEP or day > entity[3] then return false end
  local days = entity[5]
  for i = 1, #days, 4 do
    if days[i] == day then
      local frauds = days[i + 3] + change
      if frauds < 0 or frauds > days[i + 1] then return false end
      days[i + 3] = frauds
      touched[key] = true
      return true
    end
  end
  return false
end

local changed = {}
for row = 0, #KEYS / 3 - 1 do
  local seconds, fraud = struct.unpack('<dd', ARGV[2], 16 * row + 1)
  local known = redis.call('EXISTS', KEYS[3 * row + 1]) == 1
  local held = false
  if fraud >= 0 and (fraud == 1) ~= known then
    local day, change = math.floor(seconds / 86400), fraud == 1 and 1 or -1
    held = label(KEYS[3 * row + 2], day, change)
    held = label(KEYS[3 * row + 3], day, change) or held
    if held and fraud == 1 then
      redis.call('SET', KEYS[3 * row + 1], '', 'EX', ARGV[3])
    elseif held then
      redis.call('DEL', KEYS[3 * row + 1])
    end
  end
  changed[row + 1] = held and 1 or 0
end
for key in pairs(touched) do
  redis.call('SET', key, cmsgpack.pack(entities[key]), 'KEEPTTL')
end
return changed
