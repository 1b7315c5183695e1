// Inner loops, compiled several times with different -m flags; DAT_ISA names the variant's namespace.
#include "rows.h"

#include "../sample.h"
#include "vector.h"

namespace dat::cpu::DAT_ISA {
namespace {

template <class S, class T>
void load_as(const void* source, int64_t stride, int64_t n, T* target) {
  const S* s = static_cast<const S*>(source);
  int64_t i = 0;
#ifdef DAT_VECTOR
  if constexpr (sizeof(S) == 2 && sizeof(T) == 4)
    if (stride == 1)
      for (; i + kWidth <= n; i += kWidth) store_vector(target + i, load_vector(s + i), false);
#endif
  if (stride == 1)
    for (; i < n; ++i) target[i] = static_cast<T>(widen(s[i]));
  else
    for (; i < n; ++i) target[i] = static_cast<T>(widen(s[i * stride]));
}

template <class T>
void load(DType dtype, const void* source, int64_t stride, int64_t n, T* target) {
  switch (dtype) {
    case DType::float64: return load_as<double>(source, stride, n, target);
    case DType::float32: return load_as<float>(source, stride, n, target);
    case DType::float16: return load_as<Half>(source, stride, n, target);
    case DType::bfloat16: return load_as<BFloat16>(source, stride, n, target);
  }
}

template <class S, class T>
void store_as(const T* source, int64_t n, void* target, int64_t stride) {
  S* t = static_cast<S*>(target);
  int64_t i = 0;
#ifdef DAT_VECTOR
  if constexpr (sizeof(S) == 2 && sizeof(T) == 4)
    if (stride == 1)
      for (; i + kWidth <= n; i += kWidth) store_vector(t + i, load_vector(source + i), false);
#endif
  if (stride == 1)
    for (; i < n; ++i) narrow(source[i], t[i]);
  else
    for (; i < n; ++i) narrow(source[i], t[i * stride]);
}

template <class T>
void store(DType dtype, const T* source, int64_t n, void* target, int64_t stride) {
  switch (dtype) {
    case DType::float64: return store_as<double>(source, n, target, stride);
    case DType::float32: return store_as<float>(source, n, target, stride);
    case DType::float16: return store_as<Half>(source, n, target, stride);
    case DType::bfloat16: return store_as<BFloat16>(source, n, target, stride);
  }
}

template <class S, class T>
inline void move_one(const S& x, const S& v, const Move<T>& how, S& out) {
  const T along = direction(how.norm, static_cast<T>(widen(v)), how.coefficient);
  narrow(clip(static_cast<T>(widen(x)) - how.step * along, how.low, how.high), out);
}

template <class S, class T>
void move_as(const S* __restrict x, const S* __restrict v, int64_t n, const Move<T>& how, S* __restrict out) {
  int64_t i = 0;
#ifdef DAT_VECTOR
  if constexpr (sizeof(T) == 4 && sizeof(S) <= 4) {
    const Vector step = all(how.step), coefficient = all(how.coefficient), low = all(how.low), high = all(how.high);
    if (how.streaming)  // up to an aligned address
      for (; i < n && reinterpret_cast<uintptr_t>(out + i) % (kWidth * sizeof(S)); ++i)
        move_one(x[i], v[i], how, out[i]);
    if (how.norm == Norm::linf)
      for (; i + kWidth <= n; i += kWidth)
        store_vector(out + i, clip_vector(minus(load_vector(x + i), signed_as(step, load_vector(v + i))), low, high),
                     how.streaming);
    else if (how.norm == Norm::clamp)
      for (; i + kWidth <= n; i += kWidth) {
        const Vector along = clip_vector(times(coefficient, load_vector(v + i)), all(-1), all(1));
        store_vector(out + i, clip_vector(minus_product(load_vector(x + i), step, along), low, high), how.streaming);
      }
    else
      for (; i + kWidth <= n; i += kWidth)
        store_vector(out + i, clip_vector(minus_product(load_vector(x + i), step, load_vector(v + i)), low, high),
                     how.streaming);
    if (how.streaming) _mm_sfence();
  }
#endif
  for (; i < n; ++i) move_one(x[i], v[i], how, out[i]);
}

template <class T>
void move(DType dtype, const void* x, const void* v, int64_t n, const Move<T>& how, void* out) {
  const auto as = [&](auto kind) {
    using S = decltype(kind);
    move_as(static_cast<const S*>(x), static_cast<const S*>(v), n, how, static_cast<S*>(out));
  };
  switch (dtype) {
    case DType::float64: return as(double{});
    case DType::float32: return as(float{});
    case DType::float16: return as(Half{});
    case DType::bfloat16: return as(BFloat16{});
  }
}

template <class T>
void scale(const T* __restrict v, int64_t n, T factor, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = factor * v[i];
}

template <class T>
double sum_of_squares(const T* v, int64_t n) {
  constexpr int kLanes = 32;  // independent sums, so that the loop vectorises without reordering arithmetic
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) lane[k] += static_cast<double>(v[i + k]) * static_cast<double>(v[i + k]);
  double sum = 0;
  for (; i < n; ++i) sum += static_cast<double>(v[i]) * static_cast<double>(v[i]);
  for (int k = 0; k < kLanes; ++k) sum += lane[k];
  return sum;
}

// A division takes longer than all the rest. With fused multiply-adds its rounding is had from a product's remainder.
inline float pixel_of(uint8_t byte) {
#ifdef __FMA__
  constexpr float kInverse = 1 / 127.5f;
  const float value = static_cast<float>(byte), product = value * kInverse;
  return __builtin_fmaf(__builtin_fmaf(-product, 127.5f, value), kInverse, product) - 1.0f;
#else
  return pixel(byte);
#endif
}

template <class T>
void pixels(const uint8_t* bytes, int64_t step, int64_t row_step, int64_t rows, int64_t columns, T* __restrict out) {
  if (step == 1 && row_step == columns) columns *= rows, rows = 1;
  for (int64_t r = 0; r < rows; ++r, bytes += row_step, out += columns) {
    if (step == 1)
      for (int64_t i = 0; i < columns; ++i) out[i] = pixel_of(bytes[i]);
    else if (step == -1)
      for (int64_t i = 0; i < columns; ++i) out[i] = pixel_of(bytes[-i]);
    else
      for (int64_t i = 0; i < columns; ++i) out[i] = pixel_of(bytes[i * step]);
  }
}

}  // namespace

extern const Rows<float> rows_float = {load<float>,  store<float>,          move<float>,
                                       scale<float>, sum_of_squares<float>, pixels<float>};
extern const Rows<double> rows_double = {load<double>,  store<double>,          move<double>,
                                         scale<double>, sum_of_squares<double>, pixels<double>};

}  // namespace dat::cpu::DAT_ISA
