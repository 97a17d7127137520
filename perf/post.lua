-- wrk script: POSTs the bodies of a file, one a line, in rotation; prints one line of figures at the end.
local requests, next_request = {}, 0

function init(args)
   local headers = { ["content-type"] = "application/json" }
   for body in io.lines(args[1]) do
      requests[#requests + 1] = wrk.format("POST", "/v1/chat/completions", headers, body)
   end
end

function request()
   next_request = next_request % #requests + 1
   return requests[next_request]
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format("FIGURES %d %d %d %.1f %.1f\n", summary.requests, summary.duration,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
