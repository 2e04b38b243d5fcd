// Ordering the neighbours of one atom.
#include <cstdint>

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

// Order by rank: n^2 / vector width comparisons without a branch beat any sort for a shell of
// neighbours.
static void rank_sort(const int64_t* keys, int64_t n, int64_t* sorted) {
  for (int64_t a = 0; a < n; ++a) {
    const int64_t key = keys[a];
    int64_t rank = 0;
    for (int64_t b = 0; b < n; ++b) rank += keys[b] < key;
    sorted[rank] = key;
  }
}

}  // namespace MLFF_ISA_NAMESPACE
}  // namespace mlff
