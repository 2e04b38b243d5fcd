#include <vector>

#include "core/training.h"

namespace mlff {

bool make_training_graph(const int64_t* senders, const int64_t* receivers, const int64_t* shifts,
                         const TrainingGraphOf<int64_t, int32_t>& graph) {
  const int64_t num_atoms = graph.num_atoms, num_edges = graph.num_edges;
  int64_t* offsets = graph.offsets;
  for (int64_t i = 0; i <= num_atoms; ++i) offsets[i] = 0;
  for (int64_t e = 0; e < num_edges; ++e) {
    if (e > 0 && receivers[e] < receivers[e - 1]) return false;
    ++offsets[receivers[e] + 1];
  }
  for (int64_t i = 0; i < num_atoms; ++i) offsets[i + 1] += offsets[i];

  std::vector<int64_t> found(static_cast<size_t>(num_edges), -1);
  int64_t* reverse = found.data();
  for (int64_t e = 0; e < num_edges; ++e) {
    if (reverse[e] >= 0) continue;
    const int64_t *s = shifts + 3 * e, j = senders[e], stop = offsets[j + 1];
    int64_t back = offsets[j];
    for (; back < stop; ++back) {
      const int64_t* t = shifts + 3 * back;
      if (senders[back] == receivers[e] && t[0] == -s[0] && t[1] == -s[1] && t[2] == -s[2] &&
          reverse[back] < 0 && back != e) {
        break;
      }
    }
    if (back == stop) return false;
    reverse[e] = back, reverse[back] = e;
  }

  // Either end owns about half of its pairs, so that equal runs of atoms have equal work.
  const auto owned = [&](int64_t e) {
    const int64_t i = receivers[e], j = senders[e];
    return i == j ? e < reverse[e] : (i < j) == ((i + j) % 2 == 0);
  };
  std::vector<int32_t> pair_of_edge(static_cast<size_t>(num_edges));
  int64_t count = 0;
  for (int64_t i = 0; i < num_atoms; ++i) {
    graph.first_pairs[i] = count;
    for (int64_t e = offsets[i]; e < offsets[i + 1]; ++e) {
      if (!owned(e)) continue;
      pair_of_edge[static_cast<size_t>(e)] = static_cast<int32_t>(count);
      pair_of_edge[static_cast<size_t>(reverse[e])] = static_cast<int32_t>(count);
      graph.edge_of_pair[count++] = e;
    }
  }
  graph.first_pairs[num_atoms] = count;
  for (int64_t i = 0; i < num_atoms; ++i) {
    int64_t to = offsets[i];
    for (const bool first : {true, false}) {
      for (int64_t e = offsets[i]; e < offsets[i + 1]; ++e) {
        if (owned(e) != first) continue;
        graph.neighbors[to] = static_cast<int32_t>(senders[e]);
        graph.pairs[to++] = pair_of_edge[static_cast<size_t>(e)];
      }
      if (first) graph.middles[i] = to;
    }
  }
  return true;
}

}  // namespace mlff
