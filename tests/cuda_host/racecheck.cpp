#include "racecheck.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>
#include <vector>

#include "block.h"
#include "cuda_host.h"

namespace cuda_host {

int race_paused = 0;

namespace {

constexpr std::size_t kGranule = 4;       // bytes that share a cell
constexpr std::size_t kSurrounds = 1024;  // of an allocation, where accesses are out of bounds

// Who, when, how. Segments number the stretches between barriers of all blocks of all launches, in
// the order they run, so a comparison tells an earlier launch from another block from an earlier
// stretch of this block.
struct Stamp {
  std::uint32_t segment = 0;
  std::uint32_t bytes : 4;
  std::uint32_t is_atomic : 1;
  std::uint32_t thread : 10;
  std::uint32_t syncs : 17;  // __syncwarp's of the thread's warp, in this segment, before it
  Stamp() : bytes(0), is_atomic(0), thread(0), syncs(0) {}
};

struct Cell {
  Stamp write;
  Stamp other_block_read, read;  // of this launch: by an earlier block, the last two by this one
  Stamp previous_read;
};

struct Region {
  std::uintptr_t start = 0;
  std::size_t bytes = 0;
  std::int64_t number = -1;  // of the device allocation; -1: shared memory
  std::vector<Cell> cells;
};

struct WarpSyncs {
  std::uint32_t count = 0;
  std::uint32_t full = 0;  // number of the last one of all lanes
  std::array<std::array<std::uint32_t, 32>, 32> pairs{};
  bool has_pairs = false;
};

bool g_enabled = false;
std::map<std::uintptr_t, Region> g_device;  // by start
std::vector<Region> g_shared;
Region* g_last = nullptr;  // found last
std::uint32_t g_segment = 1, g_block_start = 1, g_launch_start = 1;
WarpSyncs g_warps[32];
std::string g_message;

bool covers(const Region& region, std::uintptr_t address) {
  return address + kSurrounds >= region.start && address < region.start + region.bytes + kSurrounds;
}

Region* find(std::uintptr_t address) {
  if (g_last != nullptr && address - g_last->start < g_last->bytes) return g_last;
  for (Region& region : g_shared) {
    if (address - region.start < region.bytes) return g_last = &region;
  }
  auto next = g_device.upper_bound(address);
  if (next != g_device.end() && covers(next->second, address)) {
    // Before the start; unless it is behind the end of the one before.
    if (next == g_device.begin()) return &next->second;
    auto before = std::prev(next);
    return covers(before->second, address) ? &before->second : &next->second;
  }
  if (next == g_device.begin()) return nullptr;
  --next;
  return covers(next->second, address) ? g_last = &next->second : nullptr;
}

std::string place(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

// File and line of a return address, as far as addr2line knows them.
std::string source(void* pc) {
  Dl_info info;
  if (dladdr(pc, &info) == 0) return "";
  char text[512];
  const auto offset =
      reinterpret_cast<std::uintptr_t>(pc) - 1 - reinterpret_cast<std::uintptr_t>(info.dli_fbase);
  std::snprintf(text, sizeof text, "addr2line -s -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                static_cast<std::size_t>(offset));
  std::string line;
  if (FILE* pipe = popen(text, "r")) {
    if (std::fgets(text, sizeof text, pipe) != nullptr) line = text;
    pclose(pipe);
  }
  line = line.substr(0, line.find_first_of(" \n"));
  return line.empty() || line[0] == '?' ? "" : " at " + line;
}

std::string describe(const Region& region, std::uintptr_t address) {
  const auto offset = std::to_string(static_cast<std::int64_t>(address - region.start));
  if (region.number < 0) return "byte " + offset + " of a shared array";
  return "byte " + offset + " of device allocation " + std::to_string(region.number) + " of " +
         std::to_string(region.bytes) + " bytes";
}

bool ordered_in_warp(const Stamp& before, unsigned thread) {
  if (before.thread / 32 != thread / 32) return false;
  const WarpSyncs& warp = g_warps[thread / 32];
  return warp.full > before.syncs || warp.pairs[before.thread % 32][thread % 32] > before.syncs;
}

bool conflicts(const Stamp& before, unsigned thread, unsigned bytes) {
  if (before.segment < g_launch_start || (before.bytes & bytes) == 0) return false;
  if (before.segment < g_block_start) return true;  // another block of this launch
  return before.segment == g_segment && before.thread != thread && !ordered_in_warp(before, thread);
}

void report(const std::string& message) {
  if (g_message.empty()) g_message = message;
}

void report_race(const Region& region, std::uintptr_t address, const Stamp& before, bool was_write,
                 bool is_write, bool is_atomic, void* pc) {
  if (!g_message.empty()) return;
  const auto verb = [](bool write, bool atomic) {
    return std::string(atomic ? "updates (atomically)" : write ? "writes" : "reads");
  };
  std::string other = "another block";
  if (before.segment >= g_block_start) {
    const unsigned t = before.thread;
    other = "thread " +
            place({t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)});
  }
  report("thread " + place(threadIdx) + " " + verb(is_write, is_atomic) + " " +
         describe(region, address) + source(pc) + ", which " + other + " " +
         verb(was_write, before.is_atomic) + ", and nothing orders them");
}

void access(const void* pointer, std::size_t bytes, bool is_write, bool is_atomic, void* pc) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  Region* region = find(address);
  if (region == nullptr) return;
  const auto offset = static_cast<std::int64_t>(address - region->start);
  if (offset < 0 || offset + bytes > region->bytes) {
    if (!g_message.empty()) return;
    report("thread " + place(threadIdx) + (is_write ? " writes " : " reads ") +
           describe(*region, address) + source(pc) + ", out of bounds");
    return;
  }
  Stamp now;
  now.segment = g_segment;
  now.is_atomic = is_atomic;
  const unsigned thread = linear_thread();
  now.thread = thread & 1023u;
  const std::uint32_t syncs = g_warps[thread / 32].count;
  now.syncs = syncs & 0x1ffffu;
  for (std::size_t at = static_cast<std::size_t>(offset); at < offset + bytes;) {
    const std::size_t first = at % kGranule;
    const std::size_t end = std::min(kGranule, first + (offset + bytes - at));
    const unsigned mask = ((1u << end) - 1) & ~((1u << first) - 1);
    Cell& cell = region->cells[at / kGranule];
    now.bytes = mask & 15u;
    if (conflicts(cell.write, thread, mask) && !(is_atomic && cell.write.is_atomic)) {
      report_race(*region, region->start + at, cell.write, true, is_write, is_atomic, pc);
    }
    if (is_write) {
      for (const Stamp* before : {&cell.other_block_read, &cell.previous_read, &cell.read}) {
        if (conflicts(*before, thread, mask)) {
          report_race(*region, region->start + at, *before, false, is_write, is_atomic, pc);
        }
      }
      cell.write = now;
    } else {
      const Stamp& last = cell.read;
      const bool of_launch = last.segment >= g_launch_start;
      if (of_launch && last.segment < g_block_start) cell.other_block_read = last;
      if (last.segment >= g_block_start && last.thread != now.thread) cell.previous_read = last;
      cell.read = now;
    }
    at += end - first;
  }
}

}  // namespace

bool race_enabled() { return g_enabled; }

void race_register(const void* start, std::size_t bytes, std::int64_t number) {
  if (!g_enabled) return;
  Region region;
  region.start = reinterpret_cast<std::uintptr_t>(start);
  region.bytes = bytes;
  region.number = number;
  region.cells.resize((bytes + kGranule - 1) / kGranule);
  g_device[region.start] = std::move(region);
  g_last = nullptr;
}

void race_unregister(const void* start) {
  g_device.erase(reinterpret_cast<std::uintptr_t>(start));
  g_last = nullptr;
}

void race_shared(const void* start, std::size_t bytes) {
  if (!g_enabled || bytes == 0) return;
  const auto address = reinterpret_cast<std::uintptr_t>(start);
  for (const Region& region : g_shared) {
    if (region.start == address && region.bytes == bytes) return;  // as before
  }
  g_last = nullptr;
  for (Region& region : g_shared) {
    if (region.start == address) {
      region.bytes = bytes;
      region.cells.resize((bytes + kGranule - 1) / kGranule);
      return;
    }
  }
  Region region;
  region.start = address;
  region.bytes = bytes;
  region.cells.resize((bytes + kGranule - 1) / kGranule);
  g_shared.push_back(std::move(region));
}

void race_kernel_begins() { g_launch_start = g_segment + 1; }

void race_block_begins() {
  if (!g_enabled) return;
  g_block_start = ++g_segment;
  // Shared memory is another one in every block.
  for (Region& region : g_shared) std::fill(region.cells.begin(), region.cells.end(), Cell());
  for (WarpSyncs& warp : g_warps) warp = WarpSyncs();
}

void race_block_ends(const std::string& where) {
  if (g_message.empty()) return;
  const std::string message = where + ": " + g_message;
  g_message.clear();
  throw Error(message);
}

void race_barrier() {
  if (!g_enabled) return;
  ++g_segment;
  for (WarpSyncs& warp : g_warps) {
    if (warp.has_pairs) warp.pairs = {};
    warp.has_pairs = false;
    warp.count = warp.full = 0;
  }
}

void race_syncwarp(unsigned warp_index, std::uint32_t mask) {
  if (!g_enabled) return;
  WarpSyncs& warp = g_warps[warp_index];
  ++warp.count;
  if (mask == ~0u) {
    warp.full = warp.count;
    return;
  }
  warp.has_pairs = true;
  for (unsigned a = 0; a < 32; ++a) {
    for (unsigned b = 0; b < 32; ++b) {
      if ((mask >> a & 1u) != 0 && (mask >> b & 1u) != 0) warp.pairs[a][b] = warp.count;
    }
  }
}

void race_atomic(const void* address, std::size_t bytes) {
  if (g_enabled && in_kernel()) access(address, bytes, true, true, __builtin_return_address(0));
}

void race_enable() { g_enabled = true; }

void race_access(const void* address, std::size_t bytes, bool is_write, void* pc) {
  if (race_paused == 0 && in_kernel()) access(address, bytes, is_write, false, pc);
}

}  // namespace cuda_host
