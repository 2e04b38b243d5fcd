#include "model_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>

#include "error.h"
#include "units.h"

namespace mlff {
namespace {

uint64_t little_endian(const char* p, int bytes) {
  uint64_t value = 0;
  for (int i = bytes - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(p[i]);
  return value;
}

uint32_t crc32(const char* data, size_t size) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int k = 0; k < 8; ++k) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
      t[i] = c;
    }
    return t;
  }();
  uint32_t c = 0xFFFFFFFFu;
  for (size_t i = 0; i < size; ++i) {
    c = table[(c ^ static_cast<unsigned char>(data[i])) & 0xFF] ^ (c >> 8);
  }
  return ~c;
}

[[noreturn]] void fail_damaged(const std::string& path, const std::string& what) {
  throw InputError(path + " is truncated or damaged (" + what + "); copy or export it again");
}

bool ends_with(const std::string& s, const std::string& tail) {
  return s.size() >= tail.size() && s.compare(s.size() - tail.size(), tail.size(), tail) == 0;
}

// Sizes and offset of one central-directory entry, which move to an extra field (id 1) when they
// do not fit 32 bits.
struct ZipEntry {
  uint64_t size, stored_size, offset;
};

ZipEntry read_sizes(const char* entry, const char* extra, size_t extra_size) {
  ZipEntry out{little_endian(entry + 24, 4), little_endian(entry + 20, 4),
               little_endian(entry + 42, 4)};
  for (size_t i = 0; i + 4 <= extra_size;) {
    const uint64_t id = little_endian(extra + i, 2), length = little_endian(extra + i + 2, 2);
    if (id == 1) {
      const char* p = extra + i + 4;
      const char* end = extra + std::min(extra_size, static_cast<size_t>(i + 4 + length));
      for (uint64_t* field : {&out.size, &out.stored_size, &out.offset}) {
        if (*field == 0xFFFFFFFFu && p + 8 <= end) {
          *field = little_endian(p, 8);
          p += 8;
        }
      }
    }
    i += 4 + length;
  }
  return out;
}

// The bytes of the entry whose name ends in `tail`, which must be stored uncompressed.
std::string unzip_entry(const std::string& zip, const std::string& tail, const std::string& path) {
  const size_t none = std::string::npos;
  const size_t end = zip.rfind(std::string("PK\5\6", 4));
  if (end == none || end + 22 > zip.size()) fail_damaged(path, "the zip directory is missing");
  uint64_t count = little_endian(&zip[end + 10], 2), at = little_endian(&zip[end + 16], 4);
  if ((count == 0xFFFF || at == 0xFFFFFFFFu) && end >= 20) {  // zip64
    const uint64_t end64 = little_endian(&zip[end - 20 + 8], 8);
    if (end64 > zip.size() || zip.size() - end64 < 56) fail_damaged(path, "bad zip directory");
    count = little_endian(&zip[end64 + 32], 8);
    at = little_endian(&zip[end64 + 48], 8);
  }
  for (uint64_t i = 0; i < count; ++i) {
    if (at > zip.size() || zip.size() - at < 46 || zip.compare(at, 4, "PK\1\2") != 0) {
      fail_damaged(path, "bad zip directory");
    }
    const char* entry = &zip[at];
    const size_t name_size = little_endian(entry + 28, 2);
    const size_t extra_size = little_endian(entry + 30, 2);
    const size_t comment_size = little_endian(entry + 32, 2);
    if (zip.size() - at < 46 + name_size + extra_size) fail_damaged(path, "bad zip directory");
    at += 46 + name_size + extra_size + comment_size;
    if (!ends_with(std::string(entry + 46, name_size), tail)) continue;

    if (little_endian(entry + 10, 2) != 0) {
      throw InputError(path + ": " + tail + " is compressed; expected an uncompressed zip as " +
                       "torch writes it, export the student again");
    }
    const ZipEntry sizes = read_sizes(entry, entry + 46 + name_size, extra_size);
    if (sizes.offset > zip.size() || zip.size() - sizes.offset < 30 ||
        zip.compare(sizes.offset, 4, "PK\3\4") != 0) {
      fail_damaged(path, "bad zip entry");
    }
    const char* local = &zip[sizes.offset];
    const uint64_t data =
        sizes.offset + 30 + little_endian(local + 26, 2) + little_endian(local + 28, 2);
    if (data > zip.size() || zip.size() - data < sizes.stored_size) {
      fail_damaged(path, "an entry ends early");
    }
    std::string bytes = zip.substr(data, sizes.stored_size);
    if (crc32(bytes.data(), bytes.size()) != little_endian(entry + 16, 4)) {
      fail_damaged(path, "checksum of " + tail + " differs");
    }
    return bytes;
  }
  throw InputError(path + " is a zip file without " + tail +
                   ": no exported student; make one with `mlff-distiller export`");
}

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

  std::string choice(const std::string& key, const std::string& a, const std::string& b) const {
    const std::string& word = text(key);
    if (word != a && word != b) {
      throw InputError(label_ + ": '" + key + "' must be " + a + " or " + b + ", got '" + word +
                       "'; upgrade mlff_distiller or export the student again");
    }
    return word;
  }

 private:
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
  if (model.rbf == "gaussian") {
    check("rbf.centers", {model.num_rbf});
    check("rbf.widths", {model.num_rbf});
  } else {
    check("rbf.frequencies", {model.num_rbf});
  }
  for (int64_t k = 0; k < model.num_interactions; ++k) {
    const std::string at = "interactions." + std::to_string(k) + ".";
    linear(at + "filter", 3 * f, model.num_rbf);
    linear(at + "message.0", f, f);
    linear(at + "message.2", 3 * f, f);
    check(at + "mix.weight", {2 * f, f});
    linear(at + "update.0", f, 2 * f);
    linear(at + "update.2", 3 * f, f);
  }
  linear("readout.0", f / 2, f);
  linear("readout.2", 1, f / 2);
  check("reference_energies", {species});
  if (model.zbl) check("zbl.radii", {species});
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

ModelFile parse_native(const char* data, size_t size, const std::string& label) {
  const std::string magic = "mlff-native ";
  if (size < magic.size() || std::memcmp(data, magic.data(), magic.size()) != 0) {
    throw InputError(label + " is no exported student (expected a torch zip file or 'mlff-native " +
                     std::to_string(kNativeFormatVersion) +
                     "' at its start); make one with `mlff-distiller export`");
  }
  std::map<std::string, std::string> values;
  struct Entry {
    std::string name, kind;
    std::vector<int64_t> shape;
    int64_t offset;
  };
  std::vector<Entry> entries;
  size_t at = 0;
  int64_t data_bytes = -1;
  while (data_bytes < 0) {
    const void* newline = std::memchr(data + at, '\n', size - at);
    if (!newline) fail_damaged(label, "its header has no end");
    const std::string line(data + at, static_cast<const char*>(newline));
    at += line.size() + 1;
    std::istringstream words(line);
    words.imbue(std::locale::classic());
    std::string key;
    words >> key;
    bool good = true;
    if (key == "mlff-native") {
      int version = 0;
      good = static_cast<bool>(words >> version);
      if (good && version > kNativeFormatVersion) {
        throw InputError(label + " has format version " + std::to_string(version) +
                         ", this engine reads up to " + std::to_string(kNativeFormatVersion) +
                         "; upgrade mlff_distiller");
      }
    } else if (key == "tensor") {
      Entry entry;
      int dims = 0;
      good = (words >> entry.name >> entry.kind >> dims) && dims >= 0 && dims <= 2 &&
             (entry.kind == "f32" || entry.kind == "f64");
      for (int i = 0; good && i < dims; ++i) {
        int64_t n = 0;
        good = (words >> n) && n >= 0 && n < (int64_t{1} << 24);
        entry.shape.push_back(n);
      }
      good = good && (words >> entry.offset) && entry.offset >= 0;
      if (good) entries.push_back(entry);
    } else if (key == "end") {
      good = (words >> data_bytes) && data_bytes >= 0;
    } else {
      std::string rest;
      std::getline(words >> std::ws, rest);
      values[key] = rest;
    }
    if (!good) fail_damaged(label, "unreadable header line '" + line.substr(0, 60) + "'");
  }
  if (size - at != static_cast<size_t>(data_bytes)) {
    fail_damaged(label, "expected " + std::to_string(data_bytes) + " bytes of parameters, got " +
                            std::to_string(size - at));
  }

  ModelFile model;
  const Header header(label, values);
  model.hidden_dim = header.integer("hidden_dim", 8, 8192);
  model.num_interactions = header.integer("num_interactions", 1, 64);
  model.num_rbf = header.integer("num_rbf", 1, 4096);
  model.cutoff = header.number("cutoff", 1e-3, 1e3);
  model.rbf = header.choice("rbf", "gaussian", "bessel");
  model.dtype = header.choice("dtype", "float32", "float64");
  model.zbl = header.integer("zbl", 0, 1) == 1;
  model.min_distance = header.number("min_distance", 0.0, 1e3);
  if (header.text("units_energy") != "eV" || header.text("units_length") != "Ang") {
    throw InputError(label + ": units must be eV and Ang, got " + header.text("units_energy") +
                     " and " + header.text("units_length") + "; export the student again");
  }
  if (model.hidden_dim % 8 != 0) {
    throw InputError(label + ": hidden_dim must be a multiple of 8, got " +
                     std::to_string(model.hidden_dim) + "; train with another width");
  }
  std::istringstream elements(header.text("elements"));
  for (int z = 0; elements >> z;) {
    if (z < 1 || z > 118 || model.species_of(z) >= 0) {
      throw InputError(label + ": elements must be distinct numbers within [1, 118], got '" +
                       header.text("elements") + "'; export the student again");
    }
    model.elements.push_back(z);
  }
  if (model.elements.empty()) {
    throw InputError(label + " names no elements; export the student again");
  }

  for (const Entry& entry : entries) {
    Tensor tensor;
    tensor.shape = entry.shape;
    int64_t count = 1;
    for (int64_t n : entry.shape) count *= n;
    const int64_t width = entry.kind == "f32" ? 4 : 8;
    if (entry.offset > data_bytes || (data_bytes - entry.offset) / width < count) {
      fail_damaged(label, "tensor '" + entry.name + "' reaches beyond the data");
    }
    tensor.values.resize(static_cast<size_t>(count));
    const char* from = data + at + entry.offset;
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
    model.tensors[entry.name] = std::move(tensor);
  }
  check_tensors(model, label);
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
  if (bytes.compare(0, 2, "PK") == 0) bytes = unzip_entry(bytes, "extra/native.bin", path);
  return parse_native(bytes.data(), bytes.size(), path);
}

}  // namespace mlff
