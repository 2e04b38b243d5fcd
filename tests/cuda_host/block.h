// One block of threads: who runs next, barriers, warp collectives.
//
// A thread runs until it suspends: at a barrier, at a warp collective, at an atomic or a memory
// fence. Which thread goes on is the schedule, a function of the seed alone: 0 takes threads in
// order, 1 in reverse order, others at random, with warps that advance together, run ahead of each
// other or anything between.
//
// A block whose threads all wait can not go on; that is how divergent use is found.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "types.h"

namespace cuda_host {

// A place in the kernel's source, filled in by default arguments at the call.
struct Site {
  const char* file;
  int line;
};

enum class Op : std::uint8_t {
  syncthreads,
  syncthreads_or,
  syncthreads_and,
  syncthreads_count,
  syncwarp,
  shfl,
  shfl_xor,
  shfl_up,
  shfl_down,
  ballot,
  any,
  all,
  match_any,
  match_all,
  reduce_add,
  reduce_min,
  reduce_max,
  reduce_and,
  reduce_or,
  reduce_xor,
};

const char* op_name(Op op);

// What a thread waits for, and what it gets. `value` and `result` hold the bits of any type.
struct Request {
  Op op;
  std::uint32_t mask;  // lanes; warp collectives only
  Site site;
  std::uint64_t value;  // predicate, value to exchange
  int argument;         // source lane, xor mask, delta; reductions: 1 if signed
  int width;
  std::uint64_t result;
};

// xorshift64*: small and the same everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed)
      : state_(seed * 0x9E3779B97F4A7C15ull + 0x1234567887654321ull) {
    if (state_ == 0) state_ = 1;
    for (int i = 0; i < 4; ++i) next();
  }
  std::uint32_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<std::uint32_t>((state_ * 0x2545F4914F6CDD1Dull) >> 32);
  }
  std::uint32_t below(std::uint32_t n) {
    return static_cast<std::uint32_t>((static_cast<std::uint64_t>(next()) * n) >> 32);
  }

 private:
  std::uint64_t state_;
};

// Runs `thread` once per thread of one block of kernel `name`. Throws Error.
void run_block(const std::string& name, uint3 block_index, dim3 block, dim3 grid,
               const std::function<void()>& thread, std::uint64_t seed, Random& random);

// --- called from inside a thread -------------------------------------------------------------
bool in_kernel();
void suspend();  // lets others run; the thread stays runnable
std::uint64_t wait_barrier(Op op, std::uint64_t value, Site site);
std::uint64_t wait_warp(Op op, std::uint32_t mask, std::uint64_t value, int argument, int width,
                        Site site);
int lane();
unsigned linear_thread();  // within the block
// Throws Error with kernel, block and thread in front of the message.
[[noreturn]] void fail(const std::string& message);

// --- warp.cpp ----------------------------------------------------------------------------------
// Fills in `result` of the requests of all lanes in `mask`, which have all arrived.
void complete_collective(Op op, std::uint32_t mask, Request* const requests[32]);

}  // namespace cuda_host
