// Reader of the exported student: TorchScript zip with the entry extra/native.bin, or a bare
// native.bin. No libtorch needed: the entry is stored uncompressed and guarded by its CRC-32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace mlff {

// Newest `mlff-native N` this reader understands.
constexpr int kNativeFormatVersion = 2;

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<double> values;  // row major, converted from f32 or f64
};

// The radial functions of one interaction, see radial.h.
struct FilterSpec {
  std::string basis;  // "gaussian", "bessel" or "chebyshev"
  int64_t num_rbf = 0;
  std::string cutoff_function;  // "cosine", "polynomial", "mollifier" or "switch"
  double parameter = 0.0;       // exponent of the polynomial; onset of the switch, Angstrom
};

enum class RepulsionKind { kNone, kSwitched, kCut };

// Parameters of one student, as written by mlff_distiller.students. All tensors were checked for
// name, shape and finite values when this was read. Files of older versions are read into the same
// fields: tensors have the names of the newest version.
struct ModelFile {
  int64_t hidden_dim = 0;        // F
  int64_t num_interactions = 0;  // K
  int64_t readout_dim = 0;
  double cutoff = 0.0;  // Angstrom
  // The norm of vectors v is sqrt(|v|^2 + norm_epsilon) - norm_shift.
  double norm_epsilon = 0.0, norm_shift = 0.0;
  std::vector<FilterSpec> filters;  // [num_interactions]
  RepulsionKind repulsion = RepulsionKind::kNone;
  std::string dtype;          // precision of the stored parameters: "float32" or "float64"
  std::vector<int> elements;  // atomic number of each species index
  double min_distance = 0.0;  // closest pair seen in training, Angstrom; 0 if unknown
  // Whether it has numbers for the uncertainty of atoms (Outputs::uncertainties), which only some
  // files have, and the largest uncertainty of an atom held out of training and the largest root
  // mean square of a frame's atoms, eV/Angstrom; the latter is that of an atom in older files.
  bool has_uncertainty = false;
  double largest_uncertainty = 0.0, largest_frame_uncertainty = 0.0;
  std::map<std::string, Tensor> tensors;

  // Species index of an atomic number, -1 if the model does not know it.
  int species_of(int atomic_number) const;
  // "H, C, O" for messages.
  std::string element_list() const;
  // The tensor `name`; throws InputError if the file has none.
  const Tensor& tensor(const std::string& name) const;
  // What a user should know about the smoothness of this energy, a clause for `info` and banners;
  // empty where there is nothing to say.
  std::string caveat() const;
};

// Reads an exported student (`student.pt`) or a bare native.bin. Throws InputError, one line, if
// the file is missing, truncated, damaged, not ours or of a newer format version.
ModelFile read_model_file(const std::string& path);

// Parses the bytes of a native.bin; `label` names the source in messages.
ModelFile parse_native(const char* data, size_t size, const std::string& label);

}  // namespace mlff
