// Stands in for CUDA's header of the same name: the conversions that the kernels use, by arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half h) {
  const int exponent = h.bits >> 10 & 31, fraction = h.bits & 1023;
  const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                          : exponent     ? std::ldexp(1024.f + fraction, exponent - 25)
                                         : std::ldexp(float(fraction), -24);
  return h.bits & 0x8000 ? -magnitude : magnitude;
}

inline __half __float2half_rn(float value) {
  const uint16_t negative = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return {0x7fff};
  if (magnitude >= 65520.f) return {uint16_t(negative | 0x7c00)};
  if (magnitude == 0) return {negative};
  const int exponent = std::max(std::ilogb(magnitude), -14);
  const int fraction = int(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));  // 1024 to 2048, less if subnormal
  return {uint16_t(negative | (((exponent + 14) << 10) + fraction))};
}
