#include "core/model_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>

#include "core/checksum.h"
#include "core/error.h"
#include "core/units.h"
#include "core/zip.h"

namespace mlff {
namespace {

// Header fields as words of one line.
class Header {
 public:
  Header(const std::string& label, const std::map<std::string, std::string>& values)
      : label_(label), values_(values) {}

  const std::string& text(const std::string& key) const {
    auto it = values_.find(key);
    if (it == values_.end()) {
      throw InputError(label_ + " lacks the header key '" + key + "'; export the student again");
    }
    return it->second;
  }

  double number(const std::string& key, double low, double high) const {
    const std::string& word = text(key);
    std::istringstream in(word);
    in.imbue(std::locale::classic());
    double value = 0.0;
    if (!(in >> value) || !(in >> std::ws).eof() || !(value >= low && value <= high)) {
      throw InputError(label_ + ": '" + key + "' must be a number within " + range(low, high) +
                       ", got '" + word + "'; export the student again");
    }
    return value;
  }

  int64_t integer(const std::string& key, int64_t low, int64_t high) const {
    const double value = number(key, static_cast<double>(low), static_cast<double>(high));
    if (value != std::floor(value)) {
      throw InputError(label_ + ": '" + key + "' must be an integer, got '" + text(key) +
                       "'; export the student again");
    }
    return static_cast<int64_t>(value);
  }

  // One of the words in `choices`, which are separated by blanks.
  std::string choice(const std::string& key, const std::string& choices) const {
    return check_choice(key, text(key), choices);
  }

  FilterSpec filter(int64_t interaction) const {
    const std::string key = "filter " + std::to_string(interaction);
    std::istringstream words(text(key));
    words.imbue(std::locale::classic());
    FilterSpec spec;
    bool good = static_cast<bool>(words >> spec.basis >> spec.num_rbf >> spec.cutoff_function);
    if (good) {
      check_choice(key, spec.basis, "gaussian bessel chebyshev");
      check_choice(key, spec.cutoff_function, "cosine polynomial mollifier switch");
      good = spec.num_rbf >= 1 && spec.num_rbf <= 4096;
      if (spec.cutoff_function == "polynomial" || spec.cutoff_function == "switch") {
        good = good && (words >> spec.parameter) && spec.parameter >= 0.0;
      }
      if (spec.cutoff_function == "polynomial") {
        good = good && spec.parameter == std::floor(spec.parameter) && spec.parameter >= 1.0 &&
               spec.parameter <= 64.0;
      }
      if (spec.cutoff_function == "switch") {
        good = good && spec.parameter < number("cutoff", 1e-3, 1e3);
      }
    }
    if (!good || !(words >> std::ws).eof()) {
      throw InputError(label_ + ": '" + key + "' must be 'BASIS NUM_RBF CUTOFF_FUNCTION " +
                       "[PARAMETER]', got '" + text(key) + "'; export the student again");
    }
    return spec;
  }

  // Two numbers, the first positive and the second not negative.
  void norm(double& epsilon, double& shift) const {
    std::istringstream words(text("norm"));
    words.imbue(std::locale::classic());
    const bool good = static_cast<bool>(words >> epsilon >> shift) && epsilon > 0.0 &&
                      std::isfinite(epsilon) && shift >= 0.0 && std::isfinite(shift);
    if (!good || !(words >> std::ws).eof()) {
      throw InputError(label_ + ": 'norm' must be two numbers, EPSILON > 0 and SHIFT >= 0, got '" +
                       text("norm") + "'; export the student again");
    }
  }

 private:
  std::string check_choice(const std::string& key, const std::string& word,
                           const std::string& choices) const {
    if (word.empty() || (' ' + choices + ' ').find(' ' + word + ' ') == std::string::npos) {
      throw InputError(label_ + ": '" + key + "' must be one of: " + choices + ", got '" + word +
                       "'; upgrade mlff_distiller or export the student again");
    }
    return word;
  }
  static std::string range(double low, double high) {
    std::ostringstream out;
    out << "[" << low << ", " << high << "]";
    return out.str();
  }
  const std::string& label_;
  const std::map<std::string, std::string>& values_;
};

void check_tensor(const ModelFile& model, const std::string& label, const std::string& name,
                  const std::vector<int64_t>& shape) {
  auto it = model.tensors.find(name);
  if (it == model.tensors.end()) {
    throw InputError(label + " lacks the tensor '" + name + "'; export the student again");
  }
  if (it->second.shape != shape) {
    std::ostringstream out;
    out << label << ": tensor '" << name << "' must have shape (";
    for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
    out << "), got (";
    for (size_t i = 0; i < it->second.shape.size(); ++i) {
      out << (i ? ", " : "") << it->second.shape[i];
    }
    out << "); export the student again";
    throw InputError(out.str());
  }
  for (double value : it->second.values) {
    if (!std::isfinite(value)) {
      throw InputError(label + ": tensor '" + name +
                       "' holds NaN or infinity; the training run diverged, export another");
    }
  }
}

void check_tensors(const ModelFile& model, const std::string& label) {
  const int64_t f = model.hidden_dim;
  const int64_t species = static_cast<int64_t>(model.elements.size());
  auto check = [&](const std::string& name, std::vector<int64_t> shape) {
    check_tensor(model, label, name, shape);
  };
  auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    check(name + ".weight", {out, in});
    check(name + ".bias", {out});
  };
  check("embedding.weight", {species, f});
  for (int64_t k = 0; k < model.num_interactions; ++k) {
    const std::string at = "interactions." + std::to_string(k) + ".";
    const FilterSpec& filter = model.filters[static_cast<size_t>(k)];
    if (filter.basis == "gaussian") {
      check(at + "rbf.centers", {filter.num_rbf});
      check(at + "rbf.widths", {filter.num_rbf});
    } else if (filter.basis == "bessel") {
      check(at + "rbf.frequencies", {filter.num_rbf});
    }
    linear(at + "filter", 3 * f, filter.num_rbf);
    linear(at + "message.0", f, f);
    linear(at + "message.2", 3 * f, f);
    check(at + "mix.weight", {2 * f, f});
    linear(at + "update.0", f, 2 * f);
    linear(at + "update.2", 3 * f, f);
  }
  linear("readout.0", model.readout_dim, f);
  linear("readout.2", 1, model.readout_dim);
  check("scales", {species});
  check("reference_energies", {species});
  if (model.repulsion != RepulsionKind::kNone) {
    for (const char* name : {"charge", "inverse_length", "range"}) {
      check(std::string("repulsion.") + name, {species, species});
    }
    check("repulsion.amplitudes", {4});
    check("repulsion.decays", {4});
  }
  if (model.has_uncertainty) {
    linear("uncertainty", model.readout_dim, model.readout_dim);
    check("uncertainty.floor", {});
    check("uncertainty.largest", {});
    if (model.tensors.count("uncertainty.largest_frame")) check("uncertainty.largest_frame", {});
  }
}

// A tensor as the header announces it.
struct Entry {
  std::string name, kind;
  std::vector<int64_t> shape;
  int64_t offset = 0;
};

// Everything before the numbers.
struct Head {
  int version = 0;
  std::map<std::string, std::string> values;
  std::vector<Entry> entries;
  int64_t data_bytes = -1;
  size_t size = 0;  // bytes of the text
};

bool read_entry(std::istringstream& words, Entry& entry) {
  int dims = 0;
  bool good = (words >> entry.name >> entry.kind >> dims) && dims >= 0 && dims <= 2 &&
              (entry.kind == "f32" || entry.kind == "f64");
  for (int i = 0; good && i < dims; ++i) {
    int64_t n = 0;
    good = (words >> n) && n >= 0 && n < (int64_t{1} << 24);
    entry.shape.push_back(n);
  }
  return good && (words >> entry.offset) && entry.offset >= 0;
}

Head read_head(const char* data, size_t size, const std::string& label) {
  Head head;
  while (head.data_bytes < 0) {
    const void* newline = std::memchr(data + head.size, '\n', size - head.size);
    if (!newline) fail_damaged(label, "its header has no end");
    const std::string line(data + head.size, static_cast<const char*>(newline));
    head.size += line.size() + 1;
    std::istringstream words(line);
    words.imbue(std::locale::classic());
    std::string key;
    words >> key;
    bool good = true;
    if (key == "mlff-native") {
      good = static_cast<bool>(words >> head.version) && head.version >= 1;
      if (good && head.version > kNativeFormatVersion) {
        throw InputError(label + " has format version " + std::to_string(head.version) +
                         ", this engine reads up to " + std::to_string(kNativeFormatVersion) +
                         "; upgrade mlff_distiller");
      }
    } else if (key == "tensor") {
      Entry entry;
      good = read_entry(words, entry);
      head.entries.push_back(entry);
    } else if (key == "end") {
      good = (words >> head.data_bytes) && head.data_bytes >= 0;
    } else {
      std::string rest, number;
      if (key == "filter" && words >> number) key += ' ' + number;
      std::getline(words >> std::ws, rest);
      head.values[key] = rest;
    }
    if (!good) fail_damaged(label, "unreadable header line '" + line.substr(0, 60) + "'");
  }
  return head;
}

Tensor decode(const Entry& entry, const char* data, int64_t data_bytes, const std::string& label) {
  Tensor tensor;
  tensor.shape = entry.shape;
  int64_t count = 1;
  for (int64_t n : entry.shape) count *= n;
  const int64_t width = entry.kind == "f32" ? 4 : 8;
  if (entry.offset > data_bytes || (data_bytes - entry.offset) / width < count) {
    fail_damaged(label, "tensor '" + entry.name + "' reaches beyond the data");
  }
  tensor.values.resize(static_cast<size_t>(count));
  const char* from = data + entry.offset;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = little_endian(from + i * width, static_cast<int>(width));
    if (width == 4) {
      const uint32_t bits32 = static_cast<uint32_t>(bits);
      float value;
      std::memcpy(&value, &bits32, 4);
      tensor.values[static_cast<size_t>(i)] = value;
    } else {
      std::memcpy(&tensor.values[static_cast<size_t>(i)], &bits, 8);
    }
  }
  return tensor;
}

void read_elements(const Header& header, const std::string& label, ModelFile& model) {
  std::istringstream elements(header.text("elements"));
  for (int z = 0; elements >> z;) {
    if (z < 1 || z > kNumElements || model.species_of(z) >= 0) {
      throw InputError(label + ": elements must be distinct numbers within [1, 118], got '" +
                       header.text("elements") + "'; export the student again");
    }
    model.elements.push_back(z);
  }
  if (model.elements.empty()) {
    throw InputError(label + " names no elements; export the student again");
  }
}

// What files of every version say in the same words.
void read_common(const Header& header, const std::string& label, ModelFile& model) {
  model.hidden_dim = header.integer("hidden_dim", 8, 8192);
  model.num_interactions = header.integer("num_interactions", 1, 64);
  model.cutoff = header.number("cutoff", 1e-3, 1e3);
  model.dtype = header.choice("dtype", "float32 float64");
  model.min_distance = header.number("min_distance", 0.0, 1e3);
  if (header.text("units_energy") != "eV" || header.text("units_length") != "Ang") {
    throw InputError(label + ": units must be eV and Ang, got " + header.text("units_energy") +
                     " and " + header.text("units_length") + "; export the student again");
  }
  if (model.hidden_dim % 8 != 0) {
    throw InputError(label + ": hidden_dim must be a multiple of 8, got " +
                     std::to_string(model.hidden_dim) + "; train with another width");
  }
  read_elements(header, label, model);
}

Tensor constant(int64_t count, double value) {
  return {{count}, std::vector<double>(static_cast<size_t>(count), value)};
}

// ZBL between the elements of a file of version 1, which holds covalent radii alone.
void zbl_of_version_1(const std::vector<double>& radii, ModelFile& model) {
  const int64_t n = static_cast<int64_t>(model.elements.size());
  Tensor charge{{n, n}, {}}, inverse_length{{n, n}, {}}, range{{n, n}, {}};
  for (int64_t a = 0; a < n; ++a) {
    for (int64_t b = 0; b < n; ++b) {
      const double za = model.elements[static_cast<size_t>(a)];
      const double zb = model.elements[static_cast<size_t>(b)];
      charge.values.push_back(kCoulombEvAngstrom * za * zb);
      inverse_length.values.push_back((std::pow(za, 0.23) + std::pow(zb, 0.23)) / 0.46850);
      range.values.push_back(radii[static_cast<size_t>(a)] + radii[static_cast<size_t>(b)]);
    }
  }
  model.tensors["repulsion.charge"] = charge;
  model.tensors["repulsion.inverse_length"] = inverse_length;
  model.tensors["repulsion.range"] = range;
  model.tensors["repulsion.amplitudes"] = {{4}, {0.18175, 0.50986, 0.28022, 0.02817}};
  model.tensors["repulsion.decays"] = {{4}, {3.19980, 0.94229, 0.40290, 0.20162}};
}

// Version 1 had the paper's norm, the cosine, one radial basis and ZBL with its published
// constants.
void read_version_1(const Header& header, const std::string& label, ModelFile& model) {
  model.readout_dim = model.hidden_dim / 2;
  model.norm_epsilon = 1e-8;
  FilterSpec filter;
  filter.basis = header.choice("rbf", "gaussian bessel");
  filter.num_rbf = header.integer("num_rbf", 1, 4096);
  filter.cutoff_function = "cosine";
  model.filters.assign(static_cast<size_t>(model.num_interactions), filter);
  for (const char* name : {"centers", "widths", "frequencies"}) {
    const auto shared = model.tensors.find(std::string("rbf.") + name);
    if (shared == model.tensors.end()) continue;
    for (int64_t k = 0; k < model.num_interactions; ++k) {
      model.tensors["interactions." + std::to_string(k) + ".rbf." + name] = shared->second;
    }
  }
  const int64_t species = static_cast<int64_t>(model.elements.size());
  model.tensors["scales"] = constant(species, 1.0);
  if (header.integer("zbl", 0, 1) == 1) {
    check_tensor(model, label, "zbl.radii", {species});
    model.repulsion = RepulsionKind::kSwitched;
    zbl_of_version_1(model.tensor("zbl.radii").values, model);
  }
}

void read_version_2(const Header& header, ModelFile& model) {
  model.readout_dim = header.integer("readout_dim", 1, 8192);
  header.norm(model.norm_epsilon, model.norm_shift);
  for (int64_t k = 0; k < model.num_interactions; ++k) model.filters.push_back(header.filter(k));
  const std::string repulsion = header.choice("repulsion", "none switched cut");
  if (repulsion == "switched") model.repulsion = RepulsionKind::kSwitched;
  if (repulsion == "cut") model.repulsion = RepulsionKind::kCut;
}

// Compares native.bin with the checksum that the metadata note of it; older files have none. Of the
// JSON only the entry "native.bin" is looked for: no other has this name.
void check_noted(const std::string& native, const std::string& metadata, const std::string& path) {
  const std::string key = "\"native.bin\"";
  size_t at = metadata.find(key);
  if (at == std::string::npos) return;
  at = metadata.find_first_not_of(" \t\r\n:", at + key.size());
  const std::string noted = at == std::string::npos ? "" : metadata.substr(at, 66);
  if (noted != '"' + sha256(native.data(), native.size()) + '"') {
    fail_damaged(path, "checksum of native.bin differs from the one in metadata.json");
  }
}

}  // namespace

int ModelFile::species_of(int atomic_number) const {
  auto it = std::find(elements.begin(), elements.end(), atomic_number);
  return it == elements.end() ? -1 : static_cast<int>(it - elements.begin());
}

std::string ModelFile::element_list() const {
  std::string out;
  for (int z : elements) out += (out.empty() ? "" : ", ") + element_symbol(z);
  return out;
}

const Tensor& ModelFile::tensor(const std::string& name) const {
  auto it = tensors.find(name);
  if (it == tensors.end()) throw InputError("the model has no tensor '" + name + "'");
  return it->second;
}

std::string ModelFile::caveat() const {
  std::string out;
  if (norm_epsilon < 1e-4) {
    out =
        "norm of the PaiNN paper, not smooth: force constants, phonons and elastic constants of "
        "symmetric crystals are wrong";
  }
  if (repulsion == RepulsionKind::kCut) {
    out += std::string(out.empty() ? "" : "; ") + "repulsion cut off with a step in the energy";
  }
  return out;
}

ModelFile parse_native(const char* data, size_t size, const std::string& label) {
  const std::string magic = "mlff-native ";
  if (size < magic.size() || std::memcmp(data, magic.data(), magic.size()) != 0) {
    throw InputError(label + " is no exported student (expected a torch zip file or 'mlff-native " +
                     std::to_string(kNativeFormatVersion) +
                     "' at its start); make one with `mlff-distiller export`");
  }
  const Head head = read_head(data, size, label);
  if (size - head.size != static_cast<size_t>(head.data_bytes)) {
    fail_damaged(label, "expected " + std::to_string(head.data_bytes) +
                            " bytes of parameters, got " + std::to_string(size - head.size));
  }
  ModelFile model;
  const Header header(label, head.values);
  read_common(header, label, model);
  for (const Entry& entry : head.entries) {
    model.tensors[entry.name] = decode(entry, data + head.size, head.data_bytes, label);
  }
  if (head.version == 1) {
    read_version_1(header, label, model);
  } else {
    read_version_2(header, model);
  }
  model.has_uncertainty = model.tensors.count("uncertainty.weight") > 0;
  check_tensors(model, label);
  if (model.has_uncertainty) {
    model.largest_uncertainty = model.tensor("uncertainty.largest").values[0];
    const auto frame = model.tensors.find("uncertainty.largest_frame");
    model.largest_frame_uncertainty =
        frame == model.tensors.end() ? model.largest_uncertainty : frame->second.values[0];
  }
  return model;
}

ModelFile read_model_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw InputError("cannot open the model file " + path +
                     "; check the path or make one with `mlff-distiller export`");
  }
  std::string bytes;
  try {
    file.exceptions(std::ios::badbit);
    bytes.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  } catch (const std::ios_base::failure&) {
    throw InputError("cannot read " + path + "; expected a file, not a directory or a bad disk");
  }
  if (bytes.empty()) fail_damaged(path, "it is empty");
  if (bytes.compare(0, 2, "PK") == 0) {
    const std::string native = unzip_entry(bytes, "extra/native.bin", path);
    std::string metadata;
    if (find_entry(bytes, "extra/metadata.json", path, metadata)) {
      check_noted(native, metadata, path);
    }
    bytes = native;
  }
  return parse_native(bytes.data(), bytes.size(), path);
}

}  // namespace mlff
