#include "core/zip.h"

#include <algorithm>
#include <array>

#include "core/error.h"

namespace mlff {
namespace {

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

}  // namespace

uint64_t little_endian(const char* p, int bytes) {
  uint64_t value = 0;
  for (int i = bytes - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(p[i]);
  return value;
}

void fail_damaged(const std::string& path, const std::string& what) {
  throw InputError(path + " is truncated or damaged (" + what + "); copy or export it again");
}

bool find_entry(const std::string& zip, const std::string& tail, const std::string& path,
                std::string& bytes) {
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
    bytes = zip.substr(data, sizes.stored_size);
    if (crc32(bytes.data(), bytes.size()) != little_endian(entry + 16, 4)) {
      fail_damaged(path, "checksum of " + tail + " differs");
    }
    return true;
  }
  return false;
}

std::string unzip_entry(const std::string& zip, const std::string& tail, const std::string& path) {
  std::string bytes;
  if (find_entry(zip, tail, path, bytes)) return bytes;
  throw InputError(path + " is a zip file without " + tail +
                   ": no exported student; make one with `mlff-distiller export`");
}

}  // namespace mlff
