-- Lets a request wait while no gateway is ready, for as long as an upgrade or a restart may take.

local longest_ms, look_ms = 30000, 50

core.register_action("hold", {"http-req"}, function(txn)
  for _ = 1, longest_ms / look_ms do
    if txn.f:nbsrv("gateways") > 0 then return end
    core.msleep(look_ms)
  end
end)
