// Warp collectives, evaluated once all lanes of the mask have arrived.
#include <string>

#include "block.h"
#include "cuda_host.h"

namespace cuda_host {
namespace {

// The lane that a shuffle reads, as the CUDA programming guide defines it: groups of `width` lanes,
// and a lane that would leave its group keeps its own value.
int source_lane(Op op, int lane, int argument, int width) {
  const int group = lane & ~(width - 1);
  const int inside = lane & (width - 1);
  switch (op) {
    case Op::shfl:
      return group + (argument & (width - 1));
    case Op::shfl_xor: {
      const int source = lane ^ argument;
      return source >= group + width ? lane : source;
    }
    case Op::shfl_up:
      return inside - argument < 0 ? lane : lane - argument;
    default:
      return inside + argument >= width ? lane : lane + argument;
  }
}

void shuffle(Op op, std::uint32_t mask, Request* const requests[32]) {
  for (int l = 0; l < 32; ++l) {
    if (requests[l] == nullptr) continue;
    const Request& r = *requests[l];
    if (r.width < 1 || r.width > 32 || (r.width & (r.width - 1)) != 0) {
      fail(std::string(op_name(op)) + ": width must be a power of two up to 32, got " +
           std::to_string(r.width));
    }
    const int source = source_lane(op, l, r.argument, r.width);
    if (source < 0 || source > 31 || (mask >> source & 1u) == 0) {
      fail(std::string(op_name(op)) + ": lane " + std::to_string(l) + " reads lane " +
           std::to_string(source) + ", which is not in the mask");
    }
    requests[l]->result = requests[source]->value;
  }
}

std::uint64_t reduce(Op op, std::uint64_t a, std::uint64_t b, bool is_signed) {
  const auto x = static_cast<std::uint32_t>(a);
  const auto y = static_cast<std::uint32_t>(b);
  const bool less = is_signed ? static_cast<std::int32_t>(x) < static_cast<std::int32_t>(y) : x < y;
  switch (op) {
    case Op::reduce_add:
      return static_cast<std::uint32_t>(x + y);
    case Op::reduce_min:
      return less ? x : y;
    case Op::reduce_max:
      return less ? y : x;
    case Op::reduce_and:
      return x & y;
    case Op::reduce_or:
      return x | y;
    default:
      return x ^ y;
  }
}

}  // namespace

const char* op_name(Op op) {
  static const char* const names[] = {
      "__syncthreads",     "__syncthreads_or",  "__syncthreads_and", "__syncthreads_count",
      "__syncwarp",        "__shfl_sync",       "__shfl_xor_sync",   "__shfl_up_sync",
      "__shfl_down_sync",  "__ballot_sync",     "__any_sync",        "__all_sync",
      "__match_any_sync",  "__match_all_sync",  "__reduce_add_sync", "__reduce_min_sync",
      "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync"};
  return names[static_cast<int>(op)];
}

void complete_collective(Op op, std::uint32_t mask, Request* const requests[32]) {
  std::uint32_t votes = 0;
  const Request* first = nullptr;
  bool same = true;
  for (int l = 0; l < 32; ++l) {
    if (requests[l] == nullptr) continue;
    if (first == nullptr) first = requests[l];
    if (requests[l]->value != 0) votes |= 1u << l;
    same = same && requests[l]->value == first->value;
  }
  std::uint64_t reduced = 0;
  switch (op) {
    case Op::shfl:
    case Op::shfl_xor:
    case Op::shfl_up:
    case Op::shfl_down:
      shuffle(op, mask, requests);
      return;
    case Op::ballot:
      reduced = votes;
      break;
    case Op::any:
      reduced = votes != 0;
      break;
    case Op::all:
      reduced = votes == mask;
      break;
    case Op::match_all:
      reduced = same ? mask : 0;
      break;
    case Op::match_any:
      for (int l = 0; l < 32; ++l) {
        if (requests[l] == nullptr) continue;
        requests[l]->result = 0;
        for (int other = 0; other < 32; ++other) {
          if (requests[other] != nullptr && requests[other]->value == requests[l]->value) {
            requests[l]->result |= 1u << other;
          }
        }
      }
      return;
    case Op::syncwarp:
      return;
    default: {
      reduced = first->value;
      for (int l = 0; l < 32; ++l) {
        if (requests[l] == nullptr || requests[l] == first) continue;
        reduced = reduce(op, reduced, requests[l]->value, first->argument != 0);
      }
      break;
    }
  }
  for (int l = 0; l < 32; ++l) {
    if (requests[l] != nullptr) requests[l]->result = reduced;
  }
}

}  // namespace cuda_host
