// float16 (IEEE binary16) in integers: for tables that a host makes, and for devices without it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mlff {

// To nearest, ties to even; beyond the largest infinity.
inline uint16_t to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (bits < 0x38800000u) {                                               // below 2^-14
    return static_cast<uint16_t>(sign |
                                 static_cast<uint32_t>(std::nearbyint(std::fabs(x) * 16777216.0f)));
  }
  bits += 0xfffu + (bits >> 13 & 1u) - (112u << 23);
  return static_cast<uint16_t>(sign | bits >> 13);
}

inline float from_half(uint32_t half) {
  const uint32_t exponent = half >> 10 & 0x1fu, fraction = half & 0x3ffu;
  float x;
  if (exponent == 0) {
    x = static_cast<float>(fraction) / 16777216.0f;
  } else {
    const uint32_t bits = (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
    std::memcpy(&x, &bits, sizeof(x));
  }
  return half & 0x8000u ? -x : x;
}

}  // namespace mlff
