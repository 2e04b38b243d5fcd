#include "edges.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "error.h"
#include "units.h"

namespace mlff {
namespace {

constexpr double kTooClose = 1e-4;  // Angstrom

// What is wrong with an edge, found in a parallel loop and reported after it.
enum Fault : int { kNone, kBadSender, kBadSpecies, kNotFinite, kOnTop };

std::string describe(int fault, const Graph& graph, int64_t edge) {
  const int64_t* end = graph.offsets + graph.n_local + 1;
  const int64_t centre = std::upper_bound(graph.offsets, end, edge) - graph.offsets - 1;
  const double* r = graph.edge_vectors + 3 * edge;
  const int32_t sender = graph.senders[edge];
  std::ostringstream out;
  switch (fault) {
    case kBadSender:
      out << "senders must lie within [0, " << graph.n_rows << "), got " << sender << " for edge "
          << edge << "; rebuild the neighbour list";
      break;
    case kBadSpecies:
      out << "edge " << edge << " joins rows " << centre << " and " << sender
          << ", at least one of which has no species; leave such edges out";
      break;
    case kNotFinite:
      out << "positions must be finite, got the edge vector (" << r[0] << ", " << r[1] << ", "
          << r[2] << ") between atoms " << centre << " and " << sender
          << "; the simulation has blown up or its input is damaged";
      break;
    default:
      out << "atoms " << centre << " and " << sender << " are at one point (less than " << kTooClose
          << " Ang apart); remove duplicate atoms";
  }
  return out.str();
}

}  // namespace

Repulsion::Repulsion(const ModelFile& model) {
  if (!model.zbl) return;
  num_species_ = static_cast<int>(model.elements.size());
  const std::vector<double>& radii = model.tensor("zbl.radii").values;
  for (int a = 0; a < num_species_; ++a) {
    for (int b = 0; b < num_species_; ++b) {
      const double za = model.elements[static_cast<size_t>(a)];
      const double zb = model.elements[static_cast<size_t>(b)];
      pairs_.push_back({kCoulombEvAngstrom * za * zb,
                        (std::pow(za, 0.23) + std::pow(zb, 0.23)) / 0.46850,
                        radii[static_cast<size_t>(a)] + radii[static_cast<size_t>(b)]});
    }
  }
}

void Repulsion::evaluate(int species_a, int species_b, double d, double& energy,
                         double& slope) const {
  const Pair& pair = pairs_[static_cast<size_t>(species_a * num_species_ + species_b)];
  energy = slope = 0.0;
  if (d >= pair.range) return;
  constexpr double kAmplitude[4] = {0.18175, 0.50986, 0.28022, 0.02817};
  constexpr double kDecay[4] = {3.19980, 0.94229, 0.40290, 0.20162};
  double screening = 0.0, screening_slope = 0.0;
  for (int k = 0; k < 4; ++k) {
    const double term = kAmplitude[k] * std::exp(-kDecay[k] * d * pair.inverse_length);
    screening += term;
    screening_slope -= kDecay[k] * pair.inverse_length * term;
  }
  const double x = d / pair.range, x5 = x * x * x * x * x;
  const double envelope = 1.0 - x5 * x * (28.0 - x * (48.0 - 21.0 * x));
  const double envelope_slope = -168.0 * x5 * (1.0 - x) * (1.0 - x) / pair.range;
  const double bare = pair.charge / d;
  energy = bare * screening * envelope;
  slope = bare * (screening_slope * envelope + screening * envelope_slope) - energy / d;
}

template <typename T>
void EdgeGeometry<T>::prepare(const Graph& graph, double cutoff, double inverse_spacing,
                              int64_t intervals, const Repulsion& repulsion, int num_species,
                              int num_threads, double* energies, double* gradients,
                              const double* weights) {
  const int64_t n = graph.n_local, num_edges = n ? graph.offsets[n] : 0;
  int32_t* counts = counts_.require(n);
  int32_t* senders = senders_.require(num_edges);
  int32_t* slots = slots_.require(num_edges);
  int32_t* interval = intervals_.require(num_edges);
  T* fraction = fractions_.require(num_edges);
  T* direction = directions_.require(3 * num_edges);
  T* inverse_distance = inverse_distances_.require(num_edges);
  int64_t max_count = 0, bad_edge = num_edges;
  (void)num_threads;

#pragma omp parallel for num_threads(num_threads) schedule(static) reduction(max : max_count) \
    reduction(min : bad_edge)
  for (int64_t c = 0; c < n; ++c) {
    const int64_t begin = graph.offsets[c], end = graph.offsets[c + 1];
    const int species = graph.species[c];
    int64_t at = begin;
    double energy = 0.0;
    for (int64_t e = begin; e < end; ++e) {
      const double* r = graph.edge_vectors + 3 * e;
      const double d2 = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
      if (gradients) gradients[3 * e] = gradients[3 * e + 1] = gradients[3 * e + 2] = 0.0;
      if (d2 >= cutoff * cutoff) {
        if (!std::isfinite(d2)) bad_edge = std::min(bad_edge, e);
        continue;
      }
      const int32_t sender = graph.senders[e];
      if (!(d2 > kTooClose * kTooClose) || sender < 0 || sender >= graph.n_rows || species < 0 ||
          graph.species[sender] < 0) {
        bad_edge = std::min(bad_edge, e);
        continue;
      }
      const double d = std::sqrt(d2), inverse = 1.0 / d;
      const double x = d * inverse_spacing;
      const int64_t i = std::min(static_cast<int64_t>(x), intervals - 1);
      senders[at] = sender;
      slots[at] = static_cast<int32_t>(e - begin);
      interval[at] = static_cast<int32_t>(i);
      fraction[at] = static_cast<T>(x - static_cast<double>(i));
      direction[3 * at] = static_cast<T>(r[0] * inverse);
      direction[3 * at + 1] = static_cast<T>(r[1] * inverse);
      direction[3 * at + 2] = static_cast<T>(r[2] * inverse);
      inverse_distance[at] = static_cast<T>(inverse);
      ++at;
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
    counts[c] = static_cast<int32_t>(at - begin);
    max_count = std::max(max_count, at - begin);
  }

  if (bad_edge < num_edges) {
    const double* r = graph.edge_vectors + 3 * bad_edge;
    const double d2 = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
    const int32_t sender = graph.senders[bad_edge];
    const int fault = !std::isfinite(d2)                     ? kNotFinite
                      : sender < 0 || sender >= graph.n_rows ? kBadSender
                      : d2 <= kTooClose * kTooClose          ? kOnTop
                                                             : kBadSpecies;
    throw InputError(describe(fault, graph, bad_edge));
  }
  for (int64_t c = 0; c < n; ++c) {
    if (graph.species[c] >= num_species) {
      throw InputError("species must be below " + std::to_string(num_species) + ", got " +
                       std::to_string(graph.species[c]) + " for atom " + std::to_string(c));
    }
  }
  max_count_ = max_count;
}

template <typename T>
size_t EdgeGeometry<T>::bytes() const {
  return counts_.bytes() + senders_.bytes() + slots_.bytes() + intervals_.bytes() +
         fractions_.bytes() + directions_.bytes() + inverse_distances_.bytes();
}

template class EdgeGeometry<float>;
template class EdgeGeometry<double>;

}  // namespace mlff
