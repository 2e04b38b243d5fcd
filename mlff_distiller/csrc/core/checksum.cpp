#include "core/checksum.h"

#include <array>
#include <cmath>
#include <cstdint>

namespace mlff {
namespace {

constexpr int kRounds = 64;

uint32_t rotate(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

// The first 32 bits of the fractional part of x.
uint32_t fraction(long double x) {
  return static_cast<uint32_t>((x - std::floor(x)) * 4294967296.0L);
}

// Constants of the standard: fractions of the cube and square roots of the first primes.
struct Constants {
  std::array<uint32_t, kRounds> cubes{};
  std::array<uint32_t, 8> squares{};
  Constants() {
    int found = 0;
    for (int n = 2; found < kRounds; ++n) {
      bool prime = true;
      for (int d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
      if (!prime) continue;
      if (found < 8) squares[found] = fraction(std::sqrt(static_cast<long double>(n)));
      cubes[found++] = fraction(std::cbrt(static_cast<long double>(n)));
    }
  }
};

void add_block(const unsigned char* block, const Constants& k, std::array<uint32_t, 8>& hash) {
  uint32_t w[kRounds];
  for (int i = 0; i < 16; ++i) {
    w[i] = static_cast<uint32_t>(block[4 * i]) << 24 |
           static_cast<uint32_t>(block[4 * i + 1]) << 16 |
           static_cast<uint32_t>(block[4 * i + 2]) << 8 | block[4 * i + 3];
  }
  for (int i = 16; i < kRounds; ++i) {
    const uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ (a >> 3)) + w[i - 7] +
           (rotate(b, 17) ^ rotate(b, 19) ^ (b >> 10));
  }
  std::array<uint32_t, 8> s = hash;
  for (int i = 0; i < kRounds; ++i) {
    const uint32_t high = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
    const uint32_t choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
    const uint32_t first = s[7] + high + choice + k.cubes[i] + w[i];
    const uint32_t low = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
    const uint32_t majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
    s = {first + low + majority, s[0], s[1], s[2], s[3] + first, s[4], s[5], s[6]};
  }
  for (int i = 0; i < 8; ++i) hash[i] += s[i];
}

}  // namespace

std::string sha256(const char* data, size_t size) {
  static const Constants constants;
  std::array<uint32_t, 8> hash = constants.squares;
  const auto* bytes = reinterpret_cast<const unsigned char*>(data);
  size_t done = 0;
  for (; size - done >= 64; done += 64) add_block(bytes + done, constants, hash);

  // The rest, a one bit, zeros and the length in bits fill one or two blocks.
  unsigned char tail[128] = {};
  const size_t rest = size - done, length = rest < 56 ? 64 : 128;
  for (size_t i = 0; i < rest; ++i) tail[i] = bytes[done + i];
  tail[rest] = 0x80;
  for (int i = 0; i < 8; ++i) {
    tail[length - 1 - i] = static_cast<unsigned char>(static_cast<uint64_t>(size) * 8 >> (8 * i));
  }
  for (size_t at = 0; at < length; at += 64) add_block(tail + at, constants, hash);

  std::string text;
  for (uint32_t word : hash) {
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  }
  return text;
}

}  // namespace mlff
