// The inner loops over rows of elements, built once per instruction set; rows_for() picks the best at run time.
#pragma once

#include <cstdint>

#include "../formulas.h"
#include "../tensor.h"

namespace dat::cpu {

// out = clip(x - step * direction(norm, v, coefficient), low, high)
template <class T>
struct Move {
  T step, coefficient, low, high;
  Norm norm;
  bool streaming;  // write past the caches, for outputs too large to be found there by the next reader
};

template <class T>  // T: the type of the arithmetic, float or double
struct Rows {
  void (*load)(DType dtype, const void* source, int64_t stride, int64_t n, T* target);
  void (*store)(DType dtype, const T* source, int64_t n, void* target, int64_t stride);
  void (*move)(DType dtype, const void* x, const void* v, int64_t n, const Move<T>& how,
               void* out);  // all of one dtype
  void (*scale)(const T* v, int64_t n, T factor, T* out);
  double (*sum_of_squares)(const T* v, int64_t n);
  // bytes as numbers in [-1, 1], row after row; step and row_step: from a byte to the next and from a row to the next
  void (*pixels)(const uint8_t* bytes, int64_t step, int64_t row_step, int64_t rows, int64_t columns, T* out);
};

template <class T>
const Rows<T>& rows_for();  // for this processor

const char* instruction_set();

}  // namespace dat::cpu
