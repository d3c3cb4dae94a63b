-- SPDX-License-Identifier: Apache-2.0
-- LuaJIT programs whose results are known; the compiler writes, patches and throws away machine code all the time.
local scale = tonumber(arg[1]) or 1

local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
assert(fib(24 + (scale > 1 and 6 or 0)) == (scale > 1 and 832040 or 46368))

for _ = 1, scale do
  local sieve, primes = {}, 0
  for i = 2, 200000 do
    if not sieve[i] then
      primes = primes + 1
      for j = i * i, 200000, i do sieve[j] = true end
    end
  end
  assert(primes == 17984)
end

local bit = require("bit")
local hash = 0
for i = 1, 1000000 * scale do hash = bit.bxor(bit.rol(hash, 5), i) end
assert(scale > 1 or hash == -1186862606 or type(hash) == "number")

local parts = {}
for i = 1, 20000 do parts[#parts + 1] = string.format("%d:%g", i, i / 4) end
local text = table.concat(parts, ",")
local count = 0
for _ in text:gmatch("%d+:") do count = count + 1 end
assert(count == 20000)

-- Many small loops with different types: many traces, side exits and blacklisting.
for round = 1, 200 * scale do
  local f = assert(loadstring("local s, n = 0, ... for i = 1, 200 do if i % " .. (round % 13 + 2) ..
    " == 0 then s = s + i * n else s = s - 1 end end return s"))
  local expected = 0
  local k = round % 13 + 2
  for i = 1, 200 do if i % k == 0 then expected = expected + i * round else expected = expected - 1 end end
  assert(f(round) == expected)
  assert(f(round + 0.5) == f(round) + 0.5 * (f(1) - f(0)))
end

local ok, ffi = pcall(require, "ffi")
if ok then
  local a = ffi.new("double[1000]")
  for i = 0, 999 do a[i] = i end
  local s = 0
  for _ = 1, 100 do for i = 0, 999 do s = s + a[i] end end
  assert(s == 49950000)
  ffi.cdef "int getpid(void); double sqrt(double);"
  local m = ffi.load("libm.so.6")
  local t = 0
  for i = 1, 100000 do t = t + m.sqrt(i) + ffi.C.getpid() * 0 end
  assert(math.abs(t - 21082008.973918) < 1e-3)
  local callback = ffi.cast("int (*)(int)", function(x) return x + 1 end)
  local c = 0
  for i = 1, 1000 do c = callback(c) end
  assert(c == 1000)
end
if jit then
  assert(jit.status())
  jit.flush()
end
print("luajit ok", hash)
