#include "core/potential.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "core/error.h"
#include "core/lattice.h"
#include "core/memory.h"
#include "core/neighbors.h"
#include "core/skin.h"
#include "core/spatial_order.h"
#include "core/units.h"

namespace mlff {

const char* const kNotFiniteResult =
    "the model gave a NaN or infinite energy or force; minimise, shorten the time step, or check "
    "the model";

namespace {

typedef std::array<double, 9> Matrix;  // rows

constexpr int kMaxForceThreads = 8;  // each has its own force array

class Timer {
 public:
  explicit Timer(double& total) : total_(total), start_(std::chrono::steady_clock::now()) {}
  ~Timer() {
    total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  double& total_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

struct Potential::State {
  State(ModelFile file, const PotentialOptions& options)
      : model(std::move(file)), engine(model, options.engine), skin(options.skin) {
    if (!(skin >= 0.0) || !std::isfinite(skin)) {
      throw InputError("skin must be >= 0 Å, got " + std::to_string(skin));
    }
    for (int z = 0; z <= kNumElements; ++z)
      species_of_z[static_cast<size_t>(z)] = model.species_of(z);
  }

  void check_input(int64_t n, const int64_t* numbers, const double* positions);
  bool list_is_valid(int64_t n, const double* positions);
  void build(int64_t n, const int64_t* numbers, const double* positions);
  void update_edge_vectors(int64_t n, const double* positions);
  void sum_forces(int64_t n, PotentialResult& result);

  ModelFile model;
  Engine engine;
  double skin;
  std::array<int, kNumElements + 1> species_of_z;

  // What the present list was built for, in the caller's order.
  bool built = false;
  std::vector<int64_t> built_numbers;
  std::vector<double> built_positions;
  Matrix built_cell{};
  std::array<bool, 3> built_pbc{};

  Matrix cell{};
  std::array<bool, 3> pbc{};
  SpatialOrder places;
  std::vector<int64_t>& order = places.order;  // caller's index of each sorted atom
  std::vector<double> sorted;                  // positions
  std::vector<int32_t> species;
  NeighborList list;
  Buffer<double> edge_vectors, pair_gradients;
  std::vector<double> energies, force_parts, atom_virials, uncertainties;
  int64_t num_builds = 0;
  double neighbor_seconds = 0.0;
};

void Potential::State::check_input(int64_t n, const int64_t* numbers, const double* positions) {
  if (n < 0 || n > INT32_MAX) {
    throw InputError("the number of atoms must lie within [0, 2^31), got " + std::to_string(n));
  }
  check_atoms(model, n, numbers, positions);
}

// True if no pair can have come within the cutoff that the list lacks.
bool Potential::State::list_is_valid(int64_t n, const double* positions) {
  if (!built || pbc != built_pbc || static_cast<int64_t>(built_numbers.size()) != n) return false;
  double map[9];
  const double allowed = allowed_move(built_cell.data(), cell.data(), pbc[0] && pbc[1] && pbc[2],
                                      engine.cutoff(), skin, map);
  if (allowed <= 0.0) return false;
  for (int64_t i = 0; i < n; ++i) {
    const double moved = moved_squared(positions + 3 * i, &built_positions[3 * i], map);
    if (!(moved <= allowed * allowed)) return false;  // NaN, too
  }
  return true;
}

void Potential::State::build(int64_t n, const int64_t* numbers, const double* positions) {
  built = false;
  Matrix to_fraction;
  inverse3(cell.data(), to_fraction.data());
  spatial_order(n, positions, cell, to_fraction, pbc, places);
  sorted.resize(static_cast<size_t>(3 * n));
  species.resize(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t from = order[static_cast<size_t>(i)];
    std::memcpy(&sorted[static_cast<size_t>(3 * i)], positions + 3 * from, 3 * sizeof(double));
    species[static_cast<size_t>(i)] = species_of_z[static_cast<size_t>(numbers[from])];
  }
  build_neighbor_list(n, sorted.data(), cell.data(), pbc, engine.cutoff() + skin,
                      engine.num_threads(), list);
  edge_vectors.require(3 * list.num_edges());
  pair_gradients.require(3 * list.num_edges());
  built_numbers.assign(numbers, numbers + n);
  built_positions.assign(positions, positions + 3 * n);
  built_cell = cell;
  built_pbc = pbc;
  built = true;
  ++num_builds;
}

void Potential::State::update_edge_vectors(int64_t n, const double* positions) {
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(&sorted[static_cast<size_t>(3 * i)], positions + 3 * order[static_cast<size_t>(i)],
                3 * sizeof(double));
  }
  const int threads = engine.num_threads();
  (void)threads;
  const double* x = sorted.data();
  double* out = edge_vectors.data();
#pragma omp parallel for num_threads(threads) schedule(static) if (n > 256)
  for (int64_t c = 0; c < n; ++c) {
    for (int64_t e = list.offsets[static_cast<size_t>(c)];
         e < list.offsets[static_cast<size_t>(c + 1)]; ++e) {
      const double* from = x + 3 * list.senders[static_cast<size_t>(e)];
      const std::array<int32_t, 3>& shift = list.shifts[static_cast<size_t>(e)];
      double* r = out + 3 * e;
      for (int a = 0; a < 3; ++a) r[a] = from[a] - x[3 * c + a];
      if (shift[0] | shift[1] | shift[2]) {
        for (int a = 0; a < 3; ++a) {
          r[a] += shift[0] * cell[static_cast<size_t>(a)] +
                  shift[1] * cell[static_cast<size_t>(3 + a)] +
                  shift[2] * cell[static_cast<size_t>(6 + a)];
        }
      }
    }
  }
}

// Forces (in the caller's order) and virial from pair gradients. Threads own ranges of centres and
// force arrays; arrays are added in their order, so equal thread counts give equal bits.
void Potential::State::sum_forces(int64_t n, PotentialResult& result) {
  const int threads = n > 256 ? std::max(1, std::min(engine.num_threads(), kMaxForceThreads)) : 1;
  force_parts.resize(static_cast<size_t>(3 * n * threads));
  std::array<Matrix, kMaxForceThreads> virials{};
  const int64_t* offsets = list.offsets.data();
  const int32_t* senders = list.senders.data();
  const double* vectors = edge_vectors.data();
  const double* gradients = pair_gradients.data();

#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    double* f = force_parts.data() + 3 * n * t;
    std::fill(f, f + 3 * n, 0.0);
    Matrix w{};
    for (int64_t c = n * t / threads; c < n * (t + 1) / threads; ++c) {
      double own[3] = {0, 0, 0};
      for (int64_t e = offsets[c]; e < offsets[c + 1]; ++e) {
        const double* g = gradients + 3 * e;
        const double* r = vectors + 3 * e;
        double* other = f + 3 * senders[e];
        for (int a = 0; a < 3; ++a) {
          own[a] += g[a];
          other[a] -= g[a];
          for (int b = 0; b < 3; ++b) w[static_cast<size_t>(3 * a + b)] -= r[a] * g[b];
        }
      }
      for (int a = 0; a < 3; ++a) f[3 * c + a] += own[a];
    }
    virials[static_cast<size_t>(t)] = w;
  }

  result.forces.resize(static_cast<size_t>(3 * n));
  for (int64_t i = 0; i < n; ++i) {
    double* to = &result.forces[static_cast<size_t>(3 * order[static_cast<size_t>(i)])];
    for (int a = 0; a < 3; ++a) {
      double total = 0.0;
      for (int t = 0; t < threads; ++t)
        total += force_parts[static_cast<size_t>(3 * (n * t + i) + a)];
      to[a] = total;
    }
  }
  // Symmetric but for rounding, as the energy does not change when everything is rotated.
  for (int a = 0; a < 3; ++a) {
    for (int b = 0; b < 3; ++b) {
      double total = 0.0;
      for (int t = 0; t < threads; ++t) {
        const Matrix& w = virials[static_cast<size_t>(t)];
        total += 0.5 * (w[static_cast<size_t>(3 * a + b)] + w[static_cast<size_t>(3 * b + a)]);
      }
      result.virial[static_cast<size_t>(3 * a + b)] = total;
    }
  }
}

Potential::Potential(const std::string& path, const PotentialOptions& options)
    : Potential(read_model_file(path), options) {}

Potential::Potential(ModelFile model, const PotentialOptions& options)
    : state_(std::make_unique<State>(std::move(model), options)) {}

Potential::~Potential() = default;

void Potential::compute(int64_t n, const int64_t* atomic_numbers, const double* positions,
                        const double* cell, const std::array<bool, 3>& pbc, PotentialResult& result,
                        unsigned outputs) {
  State& s = *state_;
  {
    Timer timer(s.neighbor_seconds);
    s.pbc = pbc;
    const std::array<Vec3, 3> rows = complete_cell(cell, pbc);
    for (size_t k = 0; k < 9; ++k) s.cell[k] = rows[k / 3][k % 3];
    const bool same = s.built && static_cast<int64_t>(s.built_numbers.size()) == n &&
                      std::equal(atomic_numbers, atomic_numbers + n, s.built_numbers.begin());
    if (!same || !s.list_is_valid(n, positions)) {
      s.check_input(n, atomic_numbers, positions);
      s.build(n, atomic_numbers, positions);
    }
    s.update_edge_vectors(n, positions);
  }

  Graph graph;
  graph.n_local = graph.n_rows = n;
  graph.species = s.species.data();
  graph.offsets = s.list.offsets.data();
  graph.senders = s.list.senders.data();
  graph.edge_vectors = s.edge_vectors.data();
  graph.names = s.order.data();
  s.energies.resize(static_cast<size_t>(n) + 1);  // never null
  Outputs out;
  out.atomic_energies = s.energies.data();
  const bool forces = (outputs & (kForces | kAtomVirials)) != 0;
  const bool uncertain = (outputs & kUncertainties) != 0;
  if (uncertain) {
    s.uncertainties.resize(static_cast<size_t>(n) + 1);
    out.uncertainties = s.uncertainties.data();
  }
  if (forces) out.pair_gradients = s.pair_gradients.require(3);  // not null without edges
  s.engine.compute(graph, nullptr, out);

  result.energies.resize(static_cast<size_t>(n));
  result.energy = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double energy = s.energies[static_cast<size_t>(i)];
    result.energies[static_cast<size_t>(s.order[static_cast<size_t>(i)])] = energy;
    result.energy += energy;
  }
  if (forces) {
    s.sum_forces(n, result);
  } else {
    result.forces.clear();
    result.virial = {};
  }
  result.uncertainties.resize(uncertain ? static_cast<size_t>(n) : 0);
  for (size_t i = 0; i < result.uncertainties.size(); ++i) {
    result.uncertainties[static_cast<size_t>(s.order[i])] = s.uncertainties[i];
  }
  result.atom_virials.clear();
  if (outputs & kAtomVirials) {
    s.atom_virials.assign(static_cast<size_t>(9 * n), 0.0);
    add_atom_virials(n, graph.offsets, graph.senders, graph.edge_vectors, s.pair_gradients.data(),
                     s.atom_virials.data());
    result.atom_virials.resize(static_cast<size_t>(9 * n));
    for (int64_t i = 0; i < n; ++i) {
      std::memcpy(&result.atom_virials[static_cast<size_t>(9 * s.order[static_cast<size_t>(i)])],
                  &s.atom_virials[static_cast<size_t>(9 * i)], 9 * sizeof(double));
    }
  }
}

const ModelFile& Potential::model() const { return state_->model; }
Engine& Potential::engine() { return state_->engine; }
double Potential::skin() const { return state_->skin; }
const TableReport& Potential::table_report() const { return state_->engine.table_report(); }
int64_t Potential::num_builds() const { return state_->num_builds; }
int64_t Potential::num_edges() const { return state_->list.num_edges(); }
double Potential::neighbor_seconds() const { return state_->neighbor_seconds; }

size_t Potential::memory_bytes() const {
  const State& s = *state_;
  Bytes bytes;
  bytes(s.built_numbers), bytes(s.built_positions), bytes(s.sorted), bytes(s.species);
  bytes(s.edge_vectors), bytes(s.pair_gradients);
  bytes(s.energies), bytes(s.force_parts), bytes(s.atom_virials), bytes(s.uncertainties);
  return bytes.total + s.engine.memory_bytes() + s.list.bytes() + s.places.bytes();
}

void check_atoms(const ModelFile& model, int64_t n, const int64_t* atomic_numbers,
                 const double* positions) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t z = atomic_numbers[i];
    if (z < 0 || z > kNumElements || model.species_of(static_cast<int>(z)) < 0) {
      throw InputError(
          "atom " + std::to_string(i) + " is " +
          element_symbol(static_cast<int>(std::min<int64_t>(std::max<int64_t>(z, -1), 999))) +
          ", the model knows " + model.element_list() + "; use a model trained with that element");
    }
  }
  for (int64_t i = 0; i < 3 * n; ++i) {
    if (!std::isfinite(positions[i])) {
      throw InputError("positions must be finite, got NaN or infinity for atom " +
                       std::to_string(i / 3) +
                       "; the simulation has blown up or its input is damaged");
    }
  }
}

void add_atom_virials(int64_t n_local, const int64_t* offsets, const int32_t* senders,
                      const double* edge_vectors, const double* pair_gradients,
                      double* atom_virials) {
  for (int64_t c = 0; c < n_local; ++c) {
    double* own = atom_virials + 9 * c;
    for (int64_t e = offsets[c]; e < offsets[c + 1]; ++e) {
      double* other = atom_virials + 9 * static_cast<int64_t>(senders[e]);
      for (int a = 0; a < 3; ++a) {
        for (int b = 0; b < 3; ++b) {
          const double half = -0.5 * edge_vectors[3 * e + a] * pair_gradients[3 * e + b];
          own[3 * a + b] += half;
          other[3 * a + b] += half;
        }
      }
    }
  }
}

}  // namespace mlff
