// A register of floats, loaded from and stored to float, half or bfloat16 memory; as wide as the instruction set has
// it.
#pragma once

#include <cstdint>
#include <cstring>

#include "../formulas.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace dat::cpu::DAT_ISA {
namespace {

struct Half {
  uint16_t raw;
};
struct BFloat16 {
  uint16_t raw;
};

inline uint32_t bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float from_bits(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// One number at a time

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return from_bits(uint32_t{value.raw} << 16); }
inline float widen(Half value) {
#ifdef __F16C__
  return _cvtsh_ss(value.raw);
#else
  // Exponent re-biased by a multiplication, which also makes subnormals normal; all ones stays inf or NaN.
  const uint32_t magnitude = uint32_t{value.raw & 0x7fffu} << 13;
  const float scaled = from_bits(magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return from_bits(bits(scaled) | special | (uint32_t{value.raw & 0x8000u} << 16));
#endif
}

// All round to nearest even, as torch does.
inline void narrow(float value, float& out) { out = value; }
inline void narrow(double value, double& out) { out = value; }
inline void narrow(double value, float& out) { out = static_cast<float>(value); }
inline void narrow(float value, double& out) { out = value; }
inline void narrow(float value, BFloat16& out) {
  const uint32_t u = bits(value);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  out.raw = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}
inline void narrow(float value, Half& out) {
#ifdef __F16C__
  out.raw = static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#else
  const uint32_t u = bits(value), negative = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t h;
  if (magnitude > 0x7f800000u)
    h = 0x7e00u;
  else if (magnitude >= 0x477ff000u)
    h = 0x7c00u;                     // 65520 and above round to infinity
  else if (magnitude < 0x38800000u)  // subnormal: the addition rounds at the right bit
    h = bits(from_bits(magnitude) + 0.5f) - bits(0.5f);
  else
    h = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  out.raw = static_cast<uint16_t>(h | negative);
#endif
}
inline void narrow(double value, BFloat16& out) { narrow(static_cast<float>(value), out); }
inline void narrow(double value, Half& out) { narrow(static_cast<float>(value), out); }

// A register at a time. store's `streaming` goes past the caches and needs an aligned address.

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define DAT_VECTOR
using Vector = __m512;
constexpr int kWidth = 16;
inline Vector load_vector(const float* p) { return _mm512_loadu_ps(p); }
inline Vector load_vector(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vector load_vector(const BFloat16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void put(void* p, __m256i raw, bool streaming) {
  streaming ? _mm256_stream_si256(static_cast<__m256i*>(p), raw) : _mm256_storeu_si256(static_cast<__m256i*>(p), raw);
}
inline void store_vector(float* p, Vector a, bool streaming) {
  streaming ? _mm512_stream_ps(p, a) : _mm512_storeu_ps(p, a);
}
inline void store_vector(Half* p, Vector a, bool streaming) {
  put(p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT), streaming);
}
inline void store_vector(BFloat16* p, Vector a, bool streaming) {
  const __m512i u = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  put(p, _mm512_cvtepi32_epi16(r), streaming);
}
inline Vector all(float value) { return _mm512_set1_ps(value); }
inline Vector signed_as(Vector step, Vector v) {  // step * sign(v)
  const __m512i minus = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(static_cast<int>(0x80000000u)));
  const Vector moved = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(step), minus));
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_OQ), moved);
}
inline Vector minus_product(Vector x, Vector a, Vector b) { return _mm512_fnmadd_ps(a, b, x); }
inline Vector minus(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
inline Vector times(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
// max and min give their second operand where one is NaN, so that NaN passes
inline Vector clip_vector(Vector a, Vector low, Vector high) { return _mm512_min_ps(high, _mm512_max_ps(low, a)); }
#elif defined(__AVX2__) && defined(__F16C__)
#define DAT_VECTOR
using Vector = __m256;
constexpr int kWidth = 8;
inline Vector load_vector(const float* p) { return _mm256_loadu_ps(p); }
inline Vector load_vector(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vector load_vector(const BFloat16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline void put(void* p, __m128i raw, bool streaming) {
  streaming ? _mm_stream_si128(static_cast<__m128i*>(p), raw) : _mm_storeu_si128(static_cast<__m128i*>(p), raw);
}
inline void store_vector(float* p, Vector a, bool streaming) {
  streaming ? _mm256_stream_ps(p, a) : _mm256_storeu_ps(p, a);
}
inline void store_vector(Half* p, Vector a, bool streaming) {
  put(p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT), streaming);
}
inline void store_vector(BFloat16* p, Vector a, bool streaming) {
  const __m256i u = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
  put(p, _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1)), streaming);
}
inline Vector all(float value) { return _mm256_set1_ps(value); }
inline Vector signed_as(Vector step, Vector v) {
  const Vector minus = _mm256_and_ps(v, _mm256_set1_ps(-0.0f));
  return _mm256_and_ps(_mm256_xor_ps(step, minus), _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_OQ));
}
inline Vector minus_product(Vector x, Vector a, Vector b) { return _mm256_fnmadd_ps(a, b, x); }
inline Vector minus(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
inline Vector times(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
inline Vector clip_vector(Vector a, Vector low, Vector high) { return _mm256_min_ps(high, _mm256_max_ps(low, a)); }
#endif

}  // namespace
}  // namespace dat::cpu::DAT_ISA
