#include "sha256.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <vector>

#include "core/error.h"

namespace mlff {
namespace {

using Words = std::array<uint32_t, 8>;

uint32_t rotate(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

// First 32 bits of the fractional part of x.
uint32_t fraction_bits(long double x) {
  return static_cast<uint32_t>((x - std::floor(x)) * 4294967296.0L);
}

// The constants of the standard: roots of the first 64 primes (80-bit long double has bits to
// spare; a test compares digests with hashlib).
struct Constants {
  Words initial;                  // square roots of the first 8
  std::array<uint32_t, 64> keys;  // cube roots of all

  Constants() {
    size_t count = 0;
    for (int n = 2; count < keys.size(); ++n) {
      bool prime = true;
      for (int d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
      if (!prime) continue;
      if (count < initial.size()) initial[count] = fraction_bits(std::sqrt((long double)n));
      keys[count++] = fraction_bits(std::cbrt((long double)n));
    }
  }
};

void add_block(const Constants& constants, const unsigned char* block, Words& state) {
  std::array<uint32_t, 64> w;
  for (int t = 0; t < 16; ++t) {
    w[t] = uint32_t{block[4 * t]} << 24 | uint32_t{block[4 * t + 1]} << 16 |
           uint32_t{block[4 * t + 2]} << 8 | uint32_t{block[4 * t + 3]};
  }
  for (int t = 16; t < 64; ++t) {
    const uint32_t s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ (w[t - 15] >> 3);
    const uint32_t s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ (w[t - 2] >> 10);
    w[t] = w[t - 16] + s0 + w[t - 7] + s1;
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (int t = 0; t < 64; ++t) {
    const uint32_t sum1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
    const uint32_t choice = (e & f) ^ (~e & g);
    const uint32_t temp1 = h + sum1 + choice + constants.keys[t] + w[t];
    const uint32_t sum0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
    const uint32_t majority = (a & b) ^ (a & c) ^ (b & c);
    h = g;
    g = f;
    f = e;
    e = d + temp1;
    d = c;
    c = b;
    b = a;
    a = temp1 + sum0 + majority;
  }
  const Words added = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < state.size(); ++i) state[i] += added[i];
}

}  // namespace

std::string sha256_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw InputError("no such model file: " + path + "; check the path");
  static const Constants constants;
  Words state = constants.initial;
  std::vector<unsigned char> buffer(1 << 16);
  uint64_t length = 0;
  size_t filled = 0;
  while (true) {
    file.read(reinterpret_cast<char*>(buffer.data()), static_cast<std::streamsize>(buffer.size()));
    filled = static_cast<size_t>(file.gcount());
    length += filled;
    if (filled < buffer.size()) break;
    for (size_t at = 0; at < filled; at += 64) add_block(constants, &buffer[at], state);
  }
  if (file.bad()) throw InputError("cannot read the model file " + path + "; check the disk");
  // The rest, a 1 bit, zeros, and the length in bits fill whole blocks.
  buffer.resize(filled);
  buffer.push_back(0x80);
  while (buffer.size() % 64 != 56) buffer.push_back(0);
  for (int shift = 56; shift >= 0; shift -= 8) {
    buffer.push_back(static_cast<unsigned char>((length * 8) >> shift));
  }
  for (size_t at = 0; at < buffer.size(); at += 64) add_block(constants, &buffer[at], state);

  std::string digest;
  for (uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) digest += "0123456789abcdef"[(word >> shift) & 15];
  }
  return digest;
}

}  // namespace mlff
