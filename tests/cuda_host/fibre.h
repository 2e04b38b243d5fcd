// Stackful fibres: the threads of a block are fibres of one host thread.
//
// A switch saves the registers that the calling convention preserves and changes the stack, in
// assembly on x86-64 and AArch64 (some 5 ns), through ucontext elsewhere. AddressSanitizer is told
// of every switch. (The AArch64 code was not run by its author.)
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(CUDA_HOST_UCONTEXT)
#define CUDA_HOST_UCONTEXT 1
#endif
#ifdef CUDA_HOST_UCONTEXT
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_HOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_HOST_ASAN 1
#endif
#endif

namespace cuda_host {

class Fibre {
 public:
  Fibre() = default;  // stands for the stack it is made on: the scheduler's
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;
  ~Fibre();

  // Makes the next switch to this fibre call `entry`, which must never return. The stack is
  // allocated at the first call and kept. `colour` spreads stack tops over cache sets.
  void prepare(void (*entry)(), unsigned colour);

  // Leaves `*this`, which must be running, for `next`. Returns when something switches back.
  void switch_to(Fibre& next);
  // The same, for a fibre that is done: nothing may switch back before the next prepare().
  void finish_to(Fibre& next);
  // Must be the first statement of `entry`.
  static void entered();

 private:
  static void arrived(Fibre& self);
  void leave(Fibre& next, bool finished);

  void* stack_pointer_ = nullptr;
  void* mapping_ = nullptr;  // guard page, then the stack
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  bool left_unfinished_ = false;
#ifdef CUDA_HOST_UCONTEXT
  ucontext_t context_;
#endif
};

}  // namespace cuda_host
