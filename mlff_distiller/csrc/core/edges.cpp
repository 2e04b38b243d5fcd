#include "core/edges.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "core/error.h"
#include "core/lattice.h"
#include "core/tables.h"

namespace mlff {
namespace {

// What is wrong with an edge, found in a parallel loop and reported after it.
enum Fault : int { kNone, kBadSender, kBadSpecies, kNotFinite, kOnTop };

std::string describe(int fault, const Graph& graph, int64_t edge) {
  const int64_t* end = graph.offsets + graph.n_local + 1;
  const int64_t centre = std::upper_bound(graph.offsets, end, edge) - graph.offsets - 1;
  const double* r = graph.edge_vectors + 3 * edge;
  const int32_t sender = graph.senders[edge];
  const auto name = [&graph](int64_t row) { return graph.names ? graph.names[row] : row; };
  std::ostringstream out;
  switch (fault) {
    case kBadSender:
      out << "senders must lie within [0, " << graph.n_rows << "), got " << sender << " for edge "
          << edge << "; rebuild the neighbour list";
      break;
    case kBadSpecies:
      out << "edge " << edge << " joins rows " << name(centre) << " and " << name(sender)
          << ", at least one of which has no species; leave such edges out";
      break;
    case kNotFinite:
      out << "positions must be finite, got the edge vector (" << r[0] << ", " << r[1] << ", "
          << r[2] << ") between atoms " << name(centre) << " and " << name(sender)
          << "; the simulation has blown up or its input is damaged";
      break;
    default:
      out << "atoms " << name(centre) << " and " << name(sender) << " are at one point (less than "
          << kSamePoint << " Å apart); remove duplicate atoms";
  }
  return out.str();
}

}  // namespace

Repulsion::Repulsion(const ModelFile& model) {
  if (model.repulsion == RepulsionKind::kNone) return;
  num_species_ = static_cast<int>(model.elements.size());
  const std::vector<double>& charge = model.tensor("repulsion.charge").values;
  const std::vector<double>& inverse_length = model.tensor("repulsion.inverse_length").values;
  const std::vector<double>& range = model.tensor("repulsion.range").values;
  for (size_t i = 0; i < charge.size(); ++i) {
    pairs_.push_back({charge[i], inverse_length[i], range[i]});
  }
  for (size_t k = 0; k < 4; ++k) {
    screening_.amplitudes[k] = model.tensor("repulsion.amplitudes").values[k];
    screening_.decays[k] = model.tensor("repulsion.decays").values[k];
  }
  screening_.switched = model.repulsion == RepulsionKind::kSwitched;
}

// Returns the first bad edge, or -1.
template <typename T>
int64_t EdgeGeometry<T>::prepare_tile(const Graph& graph, int64_t t, double cutoff,
                                      double inverse_spacing, int64_t intervals,
                                      const Repulsion& repulsion, double* energies,
                                      double* gradients, const double* weights, Scratch& scratch) {
  const int64_t begin = t * tile_, end = std::min(graph.n_local, begin + tile_);
  const int64_t first_edge = graph.offsets[begin];
  scratch.edges.clear();
  scratch.bins.assign(static_cast<size_t>(intervals) + 1, 0);
  for (int64_t c = begin; c < end; ++c) {
    const int species = graph.species[c];
    double energy = 0.0;
    for (int64_t e = graph.offsets[c]; e < graph.offsets[c + 1]; ++e) {
      const double* r = graph.edge_vectors + 3 * e;
      const double d2 = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
      if (gradients) gradients[3 * e] = gradients[3 * e + 1] = gradients[3 * e + 2] = 0.0;
      if (d2 >= cutoff * cutoff) {
        if (!std::isfinite(d2)) return e;
        continue;
      }
      const int32_t sender = graph.senders[e];
      if (!(d2 > kSamePoint * kSamePoint) || sender < 0 || sender >= graph.n_rows || species < 0 ||
          graph.species[sender] < 0) {
        return e;
      }
      const double d = std::sqrt(d2), inverse = 1.0 / d, position = d * inverse_spacing;
      const int64_t interval = std::min(static_cast<int64_t>(position), intervals - 1);
      ++scratch.bins[static_cast<size_t>(interval) + 1];
      scratch.edges.push_back({inverse, position, static_cast<int32_t>(e - first_edge), sender,
                               static_cast<int32_t>(c - begin), static_cast<int32_t>(interval)});
      if (repulsion.active()) {
        double pair, slope;
        repulsion.evaluate(species, graph.species[sender], d, pair, slope);
        energy += 0.5 * pair;
        if (gradients) {
          const double half = weights ? 0.5 * weights[c] : 0.5;
          for (int a = 0; a < 3; ++a) gradients[3 * e + a] = half * slope * r[a] * inverse;
        }
      }
    }
    energies[c] = energy;
  }

  for (int64_t i = 1; i < intervals; ++i) {
    scratch.bins[static_cast<size_t>(i)] += scratch.bins[static_cast<size_t>(i) - 1];
  }
  const bool tabulated = inverse_spacing > 0.0;
  for (const Unsorted& edge : scratch.edges) {
    const int64_t place = scratch.bins[static_cast<size_t>(edge.interval)]++;
    const int64_t at = first_edge + place;
    const double* r = graph.edge_vectors + 3 * (first_edge + edge.slot);
    EdgeRecord<T>& record = records_.data()[at];
    double q[3] = {0.0, 0.0, 0.0}, b[3] = {1.0, 0.0, 0.0}, scale = 1.0;
    if (tabulated) {
      spline_weights(edge.position - static_cast<double>(edge.interval), q, b);
      scale = inverse_spacing;
    }
    for (int a = 0; a < 3; ++a) {
      record.q[a] = static_cast<T>(q[a]);
      record.b[a] = static_cast<T>(b[a] * scale);
      record.r[a] = static_cast<T>(r[a] * edge.inverse_distance);
    }
    record.interval = tabulated ? edge.interval : static_cast<int32_t>(place);
    record.sender = edge.sender;
    record.centre = edge.centre;
    slots_.data()[at] = edge.slot;
    inverse_distances_.data()[at] = static_cast<T>(edge.inverse_distance);
  }
  counts_.data()[t] = static_cast<int32_t>(scratch.edges.size());
  return -1;
}

template <typename T>
void EdgeGeometry<T>::prepare(const Graph& graph, int64_t tile, double cutoff,
                              double inverse_spacing, int64_t intervals, const Repulsion& repulsion,
                              int num_species, int num_threads, double* energies, double* gradients,
                              const double* weights) {
  const int64_t n = graph.n_local, num_edges = n ? graph.offsets[n] : 0;
  const int64_t tiles = (n + tile - 1) / tile;
  tile_ = tile;
  graph_offsets_ = graph.offsets;
  counts_.require(tiles);
  slots_.require(num_edges);
  EdgeRecord<T>* records = records_.require(num_edges + kRecordsAhead);
  std::fill(records + num_edges, records + num_edges + kRecordsAhead, EdgeRecord<T>{});
  inverse_distances_.require(num_edges);
  if (scratch_.size() < static_cast<size_t>(num_threads)) {
    scratch_.resize(static_cast<size_t>(num_threads));
  }
  int64_t bad_edge = num_edges;

#pragma omp parallel for num_threads(num_threads) schedule(static) reduction(min : bad_edge)
  for (int64_t t = 0; t < tiles; ++t) {
#ifdef _OPENMP
    Scratch& scratch = scratch_[static_cast<size_t>(omp_get_thread_num())];
#else
    Scratch& scratch = scratch_[0];
#endif
    const int64_t bad = prepare_tile(graph, t, cutoff, inverse_spacing, intervals, repulsion,
                                     energies, gradients, weights, scratch);
    if (bad >= 0) bad_edge = std::min(bad_edge, bad);
  }

  if (bad_edge < num_edges) {
    const double* r = graph.edge_vectors + 3 * bad_edge;
    const double d2 = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
    const int32_t sender = graph.senders[bad_edge];
    const int fault = !std::isfinite(d2)                     ? kNotFinite
                      : sender < 0 || sender >= graph.n_rows ? kBadSender
                      : d2 <= kSamePoint * kSamePoint        ? kOnTop
                                                             : kBadSpecies;
    throw InputError(describe(fault, graph, bad_edge));
  }
  for (int64_t c = 0; c < n; ++c) {
    if (graph.species[c] >= num_species) {
      throw InputError("species must be below " + std::to_string(num_species) + ", got " +
                       std::to_string(graph.species[c]) + " for atom " + std::to_string(c));
    }
  }
}

template <typename T>
size_t EdgeGeometry<T>::bytes() const {
  Bytes bytes;
  bytes(counts_), bytes(slots_), bytes(records_), bytes(inverse_distances_);
  for (const Scratch& scratch : scratch_) bytes(scratch.edges), bytes(scratch.bins);
  return bytes.total;
}

template class EdgeGeometry<float>;
template class EdgeGeometry<double>;

}  // namespace mlff
