// Races and accesses out of bounds, found whatever the schedule: for kernels compiled with
// -fsanitize=thread and linked without it, whose every load and store then calls
// racecheck_hooks.cpp.
//
// Two accesses of one address race if threads differ, at least one is a plain write (or one is
// atomic and the other is not), and nothing orders them. What orders: a barrier of the block,
// __syncwarp with both lanes in its mask, the end of the kernel. Shuffles and votes do not, as CUDA
// has it, and nothing orders blocks of one launch (a fence followed by an atomic counter is not
// understood). The first race or bad access of a block is thrown when the block ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_host {

// Whether kernels of this program are instrumented; the calls below do nothing otherwise.
bool race_enabled();

void race_register(const void* start, std::size_t bytes, std::int64_t number);  // device memory
void race_unregister(const void* start);
void race_shared(const void* start, std::size_t bytes);  // of the block that follows
void race_kernel_begins();
void race_block_begins();
void race_block_ends(const std::string& where);  // throws Error
void race_barrier();
void race_syncwarp(unsigned warp, std::uint32_t mask);
void race_atomic(const void* address, std::size_t bytes);
// Called by what the compiler inserts (racecheck_hooks.cpp), from `pc`.
void race_access(const void* address, std::size_t bytes, bool is_write, void* pc);
void race_enable();

// While one of these lives, accesses are the emulation's own. They are instrumented after the
// compiler has optimised: without the barriers it sees no reader between the two and drops both.
extern int race_paused;
struct RacePause {
  RacePause() {
    ++race_paused;
    asm volatile("" ::: "memory");
  }
  ~RacePause() {
    asm volatile("" ::: "memory");
    --race_paused;
  }
  RacePause(const RacePause&) = delete;
  RacePause& operator=(const RacePause&) = delete;
};

}  // namespace cuda_host
