#include "block.h"

#include <exception>
#include <memory>
#include <vector>

#include "cuda_host.h"
#include "fibre.h"
#include "racecheck.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_host {
namespace {

constexpr std::uint64_t kMaxSwitches = 1ull << 32;  // of one block; more is an endless loop

enum class Wait : std::uint8_t { nothing, barrier, warp };

struct Thread {
  Fibre fibre;
  uint3 index{};
  unsigned linear = 0;
  bool exited = false;
  Wait wait = Wait::nothing;
  Request request{};
};

// Lanes that have arrived at one collective.
struct Group {
  Op op;
  std::uint32_t mask;
  int line;
  std::uint32_t arrived;
};

struct Warp {
  std::uint32_t runnable = 0;
  std::uint32_t exists = 0;
  int num_groups = 0;
  Group groups[32];
};

struct State {
  std::vector<std::unique_ptr<Thread>> threads;  // kept from block to block, with their stacks
  Warp warps[32];
  std::uint32_t runnable_warps = 0;
  unsigned num_threads = 0;
  unsigned live = 0;
  unsigned at_barrier = 0;
  Thread* current = nullptr;
  Fibre scheduler;
  const std::function<void()>* body = nullptr;
  const std::string* kernel = nullptr;
  std::exception_ptr error;
  std::uint64_t switches = 0;
  std::uint64_t seed = 0;
  std::uint32_t stay = 0;  // of 2^32: how often a random schedule stays with its warp
  Random* random = nullptr;
};

State g;

std::string place(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

std::string where(const Thread& t) {
  return "kernel " + *g.kernel + ", block " + place(blockIdx) + ", thread " + place(t.index);
}

std::string text(Site site) {
  std::string file = site.file;
  const std::size_t slash = file.rfind('/');
  if (slash != std::string::npos) file = file.substr(slash + 1);
  return file + ":" + std::to_string(site.line);
}

std::string text(const Request& r) { return std::string(op_name(r.op)) + " at " + text(r.site); }

int lowest(std::uint32_t bits) { return __builtin_ctz(bits); }
int highest(std::uint32_t bits) { return 31 - __builtin_clz(bits); }

int any_bit(std::uint32_t bits) {
  const int shift = static_cast<int>(g.random->next() & 31u);
  const std::uint32_t turned = (bits >> shift) | (bits << ((32 - shift) & 31));
  return (lowest(turned) + shift) & 31;
}

// The next thread to run, or null. Ordered schedules go round, so that a thread that spins on an
// atomic does not starve the one it waits for.
Thread* pick() {
  if (g.runnable_warps == 0) return nullptr;
  const int warp = g.current != nullptr ? static_cast<int>(g.current->linear / 32) : 0;
  const int lane = g.current != nullptr ? static_cast<int>(g.current->linear % 32) : -1;
  int w = 0;
  int l = 0;
  if (g.seed == 0) {
    const std::uint32_t after = g.warps[warp].runnable & (lane == 31 ? 0u : ~0u << (lane + 1));
    if (after != 0) {
      w = warp;
      l = lowest(after);
    } else {
      const std::uint32_t later = g.runnable_warps & (warp == 31 ? 0u : ~0u << (warp + 1));
      w = lowest(later != 0 ? later : g.runnable_warps);
      l = lowest(g.warps[w].runnable);
    }
  } else if (g.seed == 1) {
    const std::uint32_t before = lane < 0 ? 0u : g.warps[warp].runnable & ((1u << lane) - 1);
    if (before != 0) {
      w = warp;
      l = highest(before);
    } else {
      const std::uint32_t earlier = lane < 0 ? 0u : g.runnable_warps & ((1u << warp) - 1);
      w = highest(earlier != 0 ? earlier : g.runnable_warps);
      l = highest(g.warps[w].runnable);
    }
  } else {
    const bool stays = g.warps[warp].runnable != 0 && g.random->next() < g.stay;
    w = stays ? warp : any_bit(g.runnable_warps);
    l = any_bit(g.warps[w].runnable);
  }
  return g.threads[static_cast<std::size_t>(w) * 32 + static_cast<std::size_t>(l)].get();
}

void set_runnable(unsigned linear) {
  g.warps[linear / 32].runnable |= 1u << (linear % 32);
  g.runnable_warps |= 1u << (linear / 32);
}

void clear_runnable(unsigned linear) {
  Warp& warp = g.warps[linear / 32];
  warp.runnable &= ~(1u << (linear % 32));
  if (warp.runnable == 0) g.runnable_warps &= ~(1u << (linear / 32));
}

void make_current(Thread* t) {
  g.current = t;
  threadIdx = t->index;
}

// Leaves the running thread for the next one; for the scheduler when nobody can run.
void next_thread() {
  Thread* self = g.current;
  if (++g.switches > kMaxSwitches) fail("does not end: 2^32 switches in one block");
  Thread* next = pick();
  if (next == self) return;
  if (next == nullptr) {
    self->fibre.switch_to(g.scheduler);
  } else {
    make_current(next);
    self->fibre.switch_to(next->fibre);
  }
}

void release_barrier() {
  std::uint64_t any = 0, all = 1, count = 0;
  const Request* first = nullptr;
  for (unsigned i = 0; i < g.num_threads; ++i) {
    const Thread& t = *g.threads[i];
    if (t.exited) continue;
    const Request& r = t.request;
    if (first == nullptr) first = &r;
    if (r.op != first->op || r.site.line != first->site.line) {
      throw Error(where(t) + ": waits at " + text(r) + " while others wait at " + text(*first));
    }
    any |= r.value;
    all &= r.value;
    count += r.value;
  }
  for (unsigned i = 0; i < g.num_threads; ++i) {
    Thread& t = *g.threads[i];
    if (t.exited) continue;
    t.wait = Wait::nothing;
    t.request.result = t.request.op == Op::syncthreads_or    ? any
                       : t.request.op == Op::syncthreads_and ? all
                                                             : count;
    set_runnable(i);
  }
  g.at_barrier = 0;
  race_barrier();
}

void thread_main() {
  Fibre::entered();
  Thread* self = g.current;
  try {
    (*g.body)();
    self->exited = true;
    clear_runnable(self->linear);
    --g.live;
    if (g.live > 0 && g.at_barrier == g.live) release_barrier();
  } catch (...) {
    g.error = std::current_exception();
  }
  Thread* next = g.error ? nullptr : pick();
  if (next == nullptr) self->fibre.finish_to(g.scheduler);
  make_current(next);
  self->fibre.finish_to(next->fibre);
}

// Everybody waits: say for what, naming the first thread whose wish can not come true.
[[noreturn]] void report_deadlock() {
  for (unsigned i = 0; i < g.num_threads; ++i) {
    const Thread& t = *g.threads[i];
    if (t.exited || t.wait != Wait::warp) continue;
    const Request& r = t.request;
    for (unsigned l = 0; l < 32; ++l) {
      if ((r.mask >> l & 1u) == 0) continue;
      const unsigned other = i / 32 * 32 + l;
      const Thread& o = *g.threads[other];
      char mask[16];
      std::snprintf(mask, sizeof mask, "0x%08x", r.mask);
      const std::string start = where(t) + ": " + text(r) + " names thread " + place(o.index) +
                                " in its mask " + mask + ", which ";
      if (o.exited) throw Error(start + "has exited");
      if (o.wait == Wait::barrier || o.request.op != r.op || o.request.site.line != r.site.line) {
        throw Error(start + "waits at " + text(o.request));
      }
      if (o.request.mask != r.mask) throw Error(start + "came there with another mask");
    }
  }
  for (unsigned i = 0; i < g.num_threads; ++i) {
    const Thread& t = *g.threads[i];
    if (t.exited || t.wait != Wait::barrier) continue;
    throw Error(where(t) + ": " + text(t.request) + " is not reached by all threads");
  }
  throw Error("kernel " + *g.kernel + ", block " + place(blockIdx) + ": no thread can run");
}

}  // namespace

bool in_kernel() { return g.current != nullptr; }

unsigned linear_thread() { return g.current->linear; }

int lane() { return static_cast<int>(g.current->linear % 32); }

void fail(const std::string& message) {
  if (!in_kernel()) throw Error(message);
  throw Error(where(*g.current) + ": " + message);
}

void suspend() {
  if (in_kernel()) next_thread();
}

std::uint64_t wait_barrier(Op op, std::uint64_t value, Site site) {
  if (!in_kernel()) fail(std::string(op_name(op)) + " outside of a kernel");
  Thread* self = g.current;
  self->request = Request{op, 0, site, value, 0, 0, 0};
  self->wait = Wait::barrier;
  clear_runnable(self->linear);
  if (++g.at_barrier == g.live) release_barrier();
  next_thread();
  return self->request.result;
}

std::uint64_t wait_warp(Op op, std::uint32_t mask, std::uint64_t value, int argument, int width,
                        Site site) {
  if (!in_kernel()) fail(std::string(op_name(op)) + " outside of a kernel");
  Thread* self = g.current;
  const unsigned lane = self->linear % 32;
  Warp& warp = g.warps[self->linear / 32];
  self->request = Request{op, mask, site, value, argument, width, 0};
  if ((mask >> lane & 1u) == 0) fail(text(self->request) + " is called by a lane not in its mask");
  if ((mask & ~warp.exists) != 0) {
    fail(text(self->request) + " names lane " + std::to_string(lowest(mask & ~warp.exists)) +
         ", which this block of " + std::to_string(g.num_threads) + " threads does not have");
  }
  self->wait = Wait::warp;
  clear_runnable(self->linear);
  int k = 0;
  while (k < warp.num_groups && (warp.groups[k].op != op || warp.groups[k].mask != mask ||
                                 warp.groups[k].line != site.line)) {
    ++k;
  }
  if (k == warp.num_groups) warp.groups[warp.num_groups++] = Group{op, mask, site.line, 0};
  warp.groups[k].arrived |= 1u << lane;
  if (warp.groups[k].arrived == mask) {
    warp.groups[k] = warp.groups[--warp.num_groups];
    Request* requests[32] = {};
    const unsigned first = self->linear / 32 * 32;
    for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      const unsigned l = static_cast<unsigned>(lowest(rest));
      Thread& t = *g.threads[first + l];
      t.wait = Wait::nothing;
      requests[l] = &t.request;
    }
    complete_collective(op, mask, requests);
    if (op == Op::syncwarp) race_syncwarp(self->linear / 32, mask);
    warp.runnable |= mask;
    g.runnable_warps |= 1u << (self->linear / 32);
  }
  next_thread();
  return self->request.result;
}

void run_block(const std::string& name, uint3 block_index, dim3 block, dim3 grid,
               const std::function<void()>& thread, std::uint64_t seed, Random& random) {
  const unsigned n = block.x * block.y * block.z;
  while (g.threads.size() < n) g.threads.push_back(std::make_unique<Thread>());
  g.kernel = &name;
  g.body = &thread;
  g.num_threads = g.live = n;
  g.at_barrier = 0;
  g.switches = 0;
  g.seed = seed;
  g.stay = seed % 3 == 0 ? 0u : seed % 3 == 1 ? 0x80000000u : 0xF8000000u;
  g.random = &random;
  g.runnable_warps = 0;
  for (unsigned w = 0; w < 32; ++w) g.warps[w].num_groups = 0;
  blockIdx = block_index;
  blockDim = block;
  gridDim = grid;
  for (unsigned i = 0; i < n; ++i) {
    Thread& t = *g.threads[i];
    t.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    t.linear = i;
    t.exited = false;
    t.wait = Wait::nothing;
    t.fibre.prepare(&thread_main, i);
  }
  for (unsigned w = 0; w * 32 < n; ++w) {
    const unsigned lanes = n - w * 32 < 32 ? n - w * 32 : 32;
    g.warps[w].runnable = g.warps[w].exists = lanes == 32 ? ~0u : (1u << lanes) - 1;
    g.runnable_warps |= 1u << w;
  }
  g.current = nullptr;
  make_current(pick());
  g.scheduler.switch_to(g.current->fibre);

  std::exception_ptr error = g.error;
  g.error = nullptr;
  if (!error && g.live > 0) {
    try {
      report_deadlock();
    } catch (...) {
      error = std::current_exception();
    }
  }
  g.current = nullptr;
  if (error) std::rethrow_exception(error);
}

}  // namespace cuda_host
