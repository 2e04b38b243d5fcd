#include "fibre.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#ifdef CUDA_HOST_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// void cuda_host_switch(void** save, void* load): pushes the preserved registers, stores the stack
// pointer to *save, continues on the stack `load`.
#if defined(CUDA_HOST_UCONTEXT)
#elif defined(__x86_64__)
asm(R"(
.text
.p2align 4
.type cuda_host_switch, @function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch, .-cuda_host_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.type cuda_host_switch, %function
cuda_host_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cuda_host_switch, .-cuda_host_switch
)");
#endif

#ifndef CUDA_HOST_UCONTEXT
extern "C" void cuda_host_switch(void** save, void* load);
#endif

namespace cuda_host {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;  // address space; pages are committed when touched

// Who switches to whom, for the moment after the switch.
Fibre* g_from = nullptr;
Fibre* g_to = nullptr;

std::size_t page_bytes() {
  static const std::size_t bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

Fibre::~Fibre() {
  if (mapping_ != nullptr) munmap(mapping_, page_bytes() + kStackBytes);
}

void Fibre::prepare(void (*entry)(), unsigned colour) {
  if (mapping_ == nullptr) {
    mapping_ = mmap(nullptr, page_bytes() + kStackBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping_ == MAP_FAILED) {
      mapping_ = nullptr;
      throw std::bad_alloc();
    }
    mprotect(mapping_, page_bytes(), PROT_NONE);  // a stack overflow faults
    bottom_ = static_cast<char*>(mapping_) + page_bytes();
    size_ = kStackBytes;
  }
#ifdef CUDA_HOST_ASAN
  // Frames that an error left behind are still marked as poisoned.
  if (left_unfinished_) __asan_unpoison_memory_region(bottom_, size_);
  fake_stack_ = nullptr;
#endif
  left_unfinished_ = false;
#ifdef CUDA_HOST_UCONTEXT
  (void)colour;
  getcontext(&context_);
  context_.uc_stack.ss_sp = const_cast<void*>(bottom_);
  context_.uc_stack.ss_size = size_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#else
  // Tops one stack size apart would all fall into the same cache sets.
  const std::size_t shift = (colour * 320u) % 32768u;
  char* top = static_cast<char*>(const_cast<void*>(bottom_)) + size_ - shift;
  top -= reinterpret_cast<std::uintptr_t>(top) % 16;
  void** slot = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
  *--slot = nullptr;  // the return address of entry
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--slot = nullptr;
#else
  slot -= 20;
  for (int i = 0; i < 20; ++i) slot[i] = nullptr;
  slot[11] = reinterpret_cast<void*>(entry);  // x30
#endif
  stack_pointer_ = slot;
#endif
}

void Fibre::arrived(Fibre& self) {
#ifdef CUDA_HOST_ASAN
  const void* bottom = nullptr;
  std::size_t size = 0;
  __sanitizer_finish_switch_fiber(self.fake_stack_, &bottom, &size);
  if (g_from->mapping_ == nullptr) {  // the scheduler's stack becomes known when it is left
    g_from->bottom_ = bottom;
    g_from->size_ = size;
  }
#endif
  self.left_unfinished_ = false;
}

void Fibre::entered() { arrived(*g_to); }

void Fibre::leave(Fibre& next, bool finished) {
  g_from = this;
  g_to = &next;
  left_unfinished_ = !finished;
#ifdef CUDA_HOST_ASAN
  __sanitizer_start_switch_fiber(finished ? nullptr : &fake_stack_, next.bottom_, next.size_);
#endif
#ifdef CUDA_HOST_UCONTEXT
  swapcontext(&context_, &next.context_);
#else
  cuda_host_switch(&stack_pointer_, next.stack_pointer_);
#endif
}

void Fibre::switch_to(Fibre& next) {
  leave(next, false);
  arrived(*this);
}

void Fibre::finish_to(Fibre& next) {
  leave(next, true);
  __builtin_unreachable();
}

}  // namespace cuda_host
