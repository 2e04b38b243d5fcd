#include "shared.h"

#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "cuda_host.h"
#include "fibre.h"
#include "memory.h"
#include "racecheck.h"

namespace cuda_host {
namespace {

constexpr std::size_t kDynamicRedZone = 4096;
constexpr std::ptrdiff_t kSharedAlignment = 128;  // of __shared__ variables
constexpr unsigned char kGuardByte = 0x5C;
const char* const kGuardName = "cuda_host_guard_";

std::vector<char> g_dynamic;  // red zone, array, red zone
std::size_t g_dynamic_bytes = 0;

struct Variable {
  char* address;
  std::size_t bytes;
  std::string name;
};

struct Statics {
  std::vector<Variable> arrays, guards;
};

bool is_guard(const Variable& v) { return v.name.find(kGuardName) != std::string::npos; }
bool is_local(const Variable& v) { return v.name.compare(0, 3, "_ZZ") == 0; }

// The file that this code was loaded from, and by how much its addresses are shifted.
struct Module {
  std::string path;
  std::uintptr_t shift = 0;
};

int find_module(dl_phdr_info* info, std::size_t, void* result) {
  const auto here = reinterpret_cast<std::uintptr_t>(&find_module);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & segment = info->dlpi_phdr[i];
    const std::uintptr_t start = info->dlpi_addr + segment.p_vaddr;
    if (segment.p_type != PT_LOAD || here < start || here >= start + segment.p_memsz) continue;
    auto* module = static_cast<Module*>(result);
    module->path = info->dlpi_name[0] != '\0' ? info->dlpi_name : "/proc/self/exe";
    module->shift = info->dlpi_addr;
    return 1;
  }
  return 0;
}

template <class T>
std::vector<T> read_items(std::ifstream& file, std::uint64_t offset, std::uint64_t bytes) {
  std::vector<T> items(bytes / sizeof(T));
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(reinterpret_cast<char*>(items.data()),
            static_cast<std::streamsize>(items.size() * sizeof(T)));
  return items;
}

// Mangled names of a function's static variables start with `_ZZ`, the function, `E`.
std::string function_of(const std::string& guard) {
  std::size_t end = guard.find(kGuardName);
  while (end > 0 && guard[end - 1] >= '0' && guard[end - 1] <= '9') --end;  // length of the name
  return guard.substr(0, end);
}

// All variables of this module, by address.
std::vector<Variable> variables() {
  Module module;
  dl_iterate_phdr(&find_module, &module);
  std::ifstream file(module.path, std::ios::binary);
  const auto header = read_items<ElfW(Ehdr)>(file, 0, sizeof(ElfW(Ehdr)));
  std::vector<ElfW(Shdr)> sections;
  if (file) {
    sections =
        read_items<ElfW(Shdr)>(file, header[0].e_shoff, header[0].e_shnum * sizeof(ElfW(Shdr)));
  }
  std::vector<Variable> found;
  for (const ElfW(Shdr) & section : sections) {
    if (section.sh_type != SHT_SYMTAB) continue;
    const auto symbols = read_items<ElfW(Sym)>(file, section.sh_offset, section.sh_size);
    const ElfW(Shdr) & strings = sections[section.sh_link];
    const auto names = read_items<char>(file, strings.sh_offset, strings.sh_size);
    for (const ElfW(Sym) & symbol : symbols) {
      if (ELF64_ST_TYPE(symbol.st_info) != STT_OBJECT || symbol.st_size == 0) continue;
      if (symbol.st_shndx == SHN_UNDEF || symbol.st_shndx >= sections.size()) continue;
      if ((sections[symbol.st_shndx].sh_flags & SHF_WRITE) == 0) continue;  // constants
      found.push_back({reinterpret_cast<char*>(module.shift + symbol.st_value), symbol.st_size,
                       names.data() + symbol.st_name});
    }
  }
  if (found.empty()) throw Error("__shared__ variables: " + module.path + " has no symbol table");
  std::sort(found.begin(), found.end(),
            [](const Variable& a, const Variable& b) { return a.address < b.address; });
  return found;
}

const Statics& statics() {
  static const Statics found = [] {
    Statics s;
    const std::vector<Variable> all = variables();
    std::set<std::string> functions;
    for (const Variable& v : all) {
      if (!is_guard(v)) continue;
      s.guards.push_back(v);
      functions.insert(function_of(v.name));
    }
    char* end = nullptr;  // of the variables so far
    bool after_array = false;
    for (const Variable& v : all) {
      const auto owns = [&](const std::string& f) { return v.name.compare(0, f.size(), f) == 0; };
      const bool is_array =
          is_local(v) && !is_guard(v) && std::any_of(functions.begin(), functions.end(), owns);
      if (is_array) s.arrays.push_back(v);
#ifndef CUDA_HOST_ASAN  // which watches the padding itself
      const std::ptrdiff_t padding = v.address - end;
      if ((is_array || after_array) && padding > 0 && padding < kSharedAlignment) {
        s.guards.push_back({end, static_cast<std::size_t>(padding), "padding"});
      }
#endif
      after_array = is_array;
      end = std::max(end, v.address + v.bytes);
    }
    return s;
  }();
  return found;
}

bool intact(const void* memory, std::size_t bytes) {
  const auto* byte = static_cast<const unsigned char*>(memory);
  return std::all_of(byte, byte + bytes, [](unsigned char b) { return b == kGuardByte; });
}

}  // namespace

void* dynamic_shared() { return g_dynamic.data() + kDynamicRedZone; }

void scribble_shared(std::size_t dynamic_bytes) {
  const std::size_t whole = dynamic_bytes + 2 * kDynamicRedZone;
  g_dynamic_bytes = dynamic_bytes;
  if (g_dynamic.size() < whole) g_dynamic.resize(whole);
  std::memset(g_dynamic.data(), kGuardByte, kDynamicRedZone);
  fill_poison(g_dynamic.data() + kDynamicRedZone, dynamic_bytes);
  std::memset(g_dynamic.data() + kDynamicRedZone + dynamic_bytes, kGuardByte, kDynamicRedZone);
  race_shared(g_dynamic.data() + kDynamicRedZone, dynamic_bytes);
  for (const Variable& v : statics().arrays) {
    fill_poison(v.address, v.bytes);
    race_shared(v.address, v.bytes);
  }
  for (const Variable& v : statics().guards) std::memset(v.address, kGuardByte, v.bytes);
}

void check_shared(const std::string& where) {
  for (const Variable& v : statics().guards) {
    if (!intact(v.address, v.bytes)) {
      throw Error(where + ": a __shared__ array was written out of bounds");
    }
  }
  const char* start = g_dynamic.data() + kDynamicRedZone;
  if (!intact(g_dynamic.data(), kDynamicRedZone) ||
      !intact(start + g_dynamic_bytes, kDynamicRedZone)) {
    throw Error(where + ": dynamic shared memory of " + std::to_string(g_dynamic_bytes) +
                " bytes was written out of bounds");
  }
}

}  // namespace cuda_host
