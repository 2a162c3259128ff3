-- FineLAP: asks for a sound, and inserts its best moment of the library at the edit cursor of the selected track.
--
-- Actions > New action > Load ReaScript. It needs curl, and a FineLAP service at FINELAP_SERVER or this address:
local server = os.getenv("FINELAP_SERVER") or "http://127.0.0.1:8080"
local key = os.getenv("FINELAP_API_KEY")
local HANDLES = 0.5 -- seconds around the moment

local function fail(message)
  reaper.ShowMessageBox(message, "FineLAP", 0)
end

-- An argument of a command line, whatever it contains.
local function quoted(text)
  return '"' .. text:gsub('[\\"$`]', "\\%0") .. '"'
end

-- What curl prints, or nil and a reason. `arguments`: a string with everything but the key.
local function curl(arguments)
  local header = key and ' -H ' .. quoted("Authorization: Bearer " .. key) or ""
  local told = reaper.ExecProcess("curl -sS --fail-with-body" .. header .. " " .. arguments, 30000)
  if not told then return nil, "curl cannot be started." end
  local code, output = told:match("^(%-?%d+)\n?(.*)$")
  if code ~= "0" then return nil, output ~= "" and output or ("The service at " .. server .. " does not answer.") end
  return output
end

-- Text as a JSON string; control characters are left out.
local function json(text)
  return '"' .. text:gsub("%c", " "):gsub('[\\"]', "\\%0") .. '"'
end

-- Clip id, start and end of the best moment, or nil and a reason.
local function find(query)
  local body = '{"query": ' .. json(query) .. ', "k": 1}'
  local found, why = curl("-H " .. quoted("Content-Type: application/json") .. " -d " .. quoted(body) .. " "
    .. quoted(server .. "/search/moments"))
  if not found then return nil, why end
  local id = found:match('"clip":%s*{%s*"id":%s*"([%w_-]+)"')
  local from, to
  for a, b in found:gmatch('"start":%s*([%d.eE+-]+),%s*"end":%s*([%d.eE+-]+),%s*"score":') do from, to = a, b end
  if not id or not from then return nil, "The library has no such sound." end
  return id, from, to
end

local ok, query = reaper.GetUserInputs("FineLAP", 1, "Sound:,extrawidth=200", "")
if not ok or query == "" then return end
local id, from, to = find(query)
if not id then return fail(from) end
local folder = reaper.GetProjectPath()
local path = folder .. "/finelap_" .. id .. "_" .. from .. "-" .. to .. ".wav"
local url = server .. "/clips/" .. id .. "/audio?start=" .. from .. "&end=" .. to .. "&pad=" .. HANDLES
local done, why = curl("-o " .. quoted(path) .. " " .. quoted(url))
if not done then return fail(why) end
reaper.Undo_BeginBlock()
reaper.InsertMedia(path, 0) -- at the edit cursor, on the selected track
reaper.Undo_EndBlock("FineLAP: insert " .. query, -1)
