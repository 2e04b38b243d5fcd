// One atomistic system on a device: positions in, energy, forces and virial out.
//
// A step without ghosts of other processes is one sequence of asynchronous work with a single wait
// at its end, whether or not the neighbour list is rebuilt, and can be captured in a graph. What
// crosses the bus: positions and cell up; forces, energies and 10 sums down. The device of the
// caller's thread is the same after every call.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "core/graph.h"
#include "core/model_file.h"
#include "core/skin.h"
#include "cuda/dense.h"
#include "cuda/ghosts.h"
#include "cuda/neighbors.h"

namespace mlff {
namespace gpu {

struct SystemOptions {
  Precision precision = Precision::kFloat32;  // of features; positions and energies are double
  Math math = Math::kFloat32;                 // in float64 no other
  double skin = kDefaultSkin;                 // Angstrom
  int device = 0;
  double warn_distance = 0.0;       // Angstrom, see close_pair()
  bool graph = true;                // capture steps without other processes in a CUDA graph
  bool cublas = true;               // false: our own products, for tests
  bool device_exchange = false;     // rows of other processes stay on the device: an MPI takes them
  bool fuse = true;                 // false: no fused.h whatever the size, for tests
  const Cublas* library = nullptr;  // instead of load_cublas(), for tests
};

// Number of usable devices; 0 without a driver.
int device_count();
// "NVIDIA H100 80GB HBM3 (9.0)"; throws DeviceError.
std::string device_name(int device);

struct StepInput {
  int64_t n_local = 0, n_rows = 0;           // centres; centres and ghosts
  const int32_t* species = nullptr;          // [n_rows] host, or -1; read when `new_atoms`
  const double* positions = nullptr;         // [n_rows][3] host, Angstrom, or
  const double* device_positions = nullptr;  // the same on the device, of as many centres as rows,
  cudaEvent_t ready = nullptr;               // once this has happened
  const double* cell = nullptr;              // 9, rows; ghosts: not used
  std::array<bool, 3> pbc{};                 // ghosts: all false
  bool new_atoms = true;                     // sizes or species changed
  // Ghosts (LAMMPS): the caller decides when lists are built, with `new_list`.
  bool keep_list = false, new_list = false;
  double skin = -1.0;  // Angstrom, of the next list; negative: as in SystemOptions
  GhostPlan ghosts;    // read with `new_list`; the same on every step of a list
  const double* energy_weights = nullptr;  // [n_local] host or null, see core/graph.h
  const int64_t* names = nullptr;          // [n_rows] host, what errors call the atoms; null: rows
  bool forces = true, atom_virials = false;
  bool to_host = true;  // false: of the results only sums come to the host
};

// Page-locked memory of the system, valid until its next step.
struct StepResult {
  double energy = 0.0;                    // eV, of the centres
  std::array<double, 9> virial{};         // eV
  const double* energies = nullptr;       // [n_local] eV; null as what follows without `to_host`
  const double* forces = nullptr;         // [n_rows][3] eV/Angstrom
  const double* atom_virials = nullptr;   // [n_rows][9] eV
  const double* device_forces = nullptr;  // as forces, on the device, whatever `to_host`
};

class System {
 public:
  // Throws InputError, and DeviceError if the device fails.
  System(const ModelFile& model, const SystemOptions& options);
  ~System();
  System(const System&) = delete;
  System& operator=(const System&) = delete;

  // A whole step, of a system that no other process has a part of. Throws InputError for positions
  // that are not finite and atoms at one point.
  const StepResult& compute(const StepInput& input);
  // Its halves: the device computes while the host does other things in between. A step that was
  // started and not completed is dropped by the next.
  void start(const StepInput& input);
  const StepResult& complete();

  // The same in stages, as Engine::begin and advance, for processes that exchange rows and have to
  // agree on errors: begin() throws every InputError there is. What advance() returns is to be
  // filled in before its next call, which takes it to the ghosts. finish() after null.
  void begin(const StepInput& input);
  const RowExchange* advance();
  const StepResult& finish();

  // Of the step that compute() or finish() has ended: [n_local] eV/Angstrom, see core/graph.h, in
  // page-locked memory of the system. A kernel, a copy and a wait of its own, so that steps which
  // are not asked pay nothing. Throws InputError for a model without data for them.
  const double* uncertainties();

  // A pair of this step nearer than SystemOptions::warn_distance; false if there is none. Valid
  // after begin() or compute().
  bool close_pair(int& centre, int& sender, double& distance) const;

  const TableReport& table_report() const;
  bool uses_cublas() const;
  std::string products() const;  // "cuBLAS 13.1.0 (/path)", or what takes its place
  int64_t num_builds() const;    // neighbour lists built so far
  int64_t num_edges() const;     // in the present list, skin included
  int64_t num_graph_launches() const;
  size_t memory_bytes() const;  // on the device

  class Impl;

 private:
  int device_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gpu
}  // namespace mlff
