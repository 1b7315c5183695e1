// Inner loops, compiled several times with different -m flags; DAT_ISA names the variant's namespace.
#include "rows.h"

#include <cstring>

#include "../formulas.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace dat::cpu::DAT_ISA {
namespace {

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

struct Half {
  uint16_t raw;
};
struct BFloat16 {
  uint16_t raw;
};

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

// Both round to nearest even, as torch does.
inline BFloat16 narrow_bfloat16(float value) {
  const uint32_t u = bits(value);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
}
inline Half narrow_half(float value) {
#ifdef __F16C__
  return {static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t u = bits(value), negative = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t h;
  if (magnitude > 0x7f800000u) h = 0x7e00u;
  else if (magnitude >= 0x477ff000u) h = 0x7c00u;  // 65520 and above round to infinity
  else if (magnitude < 0x38800000u)                // subnormal: the addition rounds at the right bit
    h = bits(from_bits(magnitude) + 0.5f) - bits(0.5f);
  else h = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  return {static_cast<uint16_t>(h | negative)};
#endif
}

template <class S, class T>
void load_as(const void* source, int64_t stride, int64_t n, T* target) {
  const S* s = static_cast<const S*>(source);
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(widen(s[i]));
  else
    for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(widen(s[i * stride]));
}

#ifdef __F16C__
template <>
void load_as<Half, float>(const void* source, int64_t stride, int64_t n, float* target) {
  const Half* s = static_cast<const Half*>(source);
  int64_t i = 0;
  if (stride == 1)
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(target + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(s + i))));
  for (; i < n; ++i) target[i] = widen(s[i * stride]);
}
#endif

template <class T>
void load(DType dtype, const void* source, int64_t stride, int64_t n, T* target) {
  switch (dtype) {
    case DType::float64: return load_as<double>(source, stride, n, target);
    case DType::float32: return load_as<float>(source, stride, n, target);
    case DType::float16: return load_as<Half>(source, stride, n, target);
    case DType::bfloat16: return load_as<BFloat16>(source, stride, n, target);
  }
}

template <class S, class T, class Convert>
void store_as(const T* source, int64_t n, void* target, int64_t stride, Convert convert) {
  S* t = static_cast<S*>(target);
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) t[i] = convert(source[i]);
  else
    for (int64_t i = 0; i < n; ++i) t[i * stride] = convert(source[i]);
}

template <class T>
void store(DType dtype, const T* source, int64_t n, void* target, int64_t stride) {
  switch (dtype) {
    case DType::float64: return store_as<double>(source, n, target, stride, [](T v) { return static_cast<double>(v); });
    case DType::float32: return store_as<float>(source, n, target, stride, [](T v) { return static_cast<float>(v); });
    case DType::bfloat16:
      return store_as<BFloat16>(source, n, target, stride, [](T v) { return narrow_bfloat16(static_cast<float>(v)); });
    case DType::float16: {
#ifdef __F16C__
      if constexpr (sizeof(T) == 4) {
        if (stride == 1) {
          char* t = static_cast<char*>(target);
          const int64_t whole = n / 8 * 8;
          for (int64_t i = 0; i < whole; i += 8)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(t + 2 * i),
                             _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT));
          source += whole, target = t + 2 * whole, n -= whole;
        }
      }
#endif
      return store_as<Half>(source, n, target, stride, [](T v) { return narrow_half(static_cast<float>(v)); });
    }
  }
}

template <class T>
void move(const T* __restrict x, const T* __restrict v, int64_t n, T step, bool use_sign, T low, T high,
          T* __restrict out) {
  if (use_sign)
    for (int64_t i = 0; i < n; ++i) out[i] = clip(x[i] - step * sign(v[i]), low, high);
  else
    for (int64_t i = 0; i < n; ++i) out[i] = clip(x[i] - step * v[i], low, high);
}

template <class T>
void scale(const T* __restrict v, int64_t n, T factor, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = factor * v[i];
}

template <class T>
double sum_of_squares(const T* v, int64_t n) {
  constexpr int kLanes = 16;  // independent sums, so that the loop vectorises without reordering arithmetic
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) lane[k] += static_cast<double>(v[i + k]) * static_cast<double>(v[i + k]);
  double sum = 0;
  for (; i < n; ++i) sum += static_cast<double>(v[i]) * static_cast<double>(v[i]);
  for (int k = 0; k < kLanes; ++k) sum += lane[k];
  return sum;
}

}  // namespace

extern const Rows<float> rows_float = {load<float>, store<float>, move<float>, scale<float>, sum_of_squares<float>};
extern const Rows<double> rows_double = {load<double>, store<double>, move<double>, scale<double>,
                                         sum_of_squares<double>};

}  // namespace dat::cpu::DAT_ISA
