// Vectors of logits on the CPU, which are read whole, and the attack's terms of them.
#pragma once

#include <utility>
#include <vector>

#include "../attack.h"
#include "rows.h"

namespace dat::cpu {

template <class T>
std::vector<T> read(const Tensor& tensor) {
  std::vector<T> values(tensor.numel());
  if (!values.empty()) rows_for<T>().load(tensor.dtype, tensor.data, tensor.strides[0], tensor.numel(), values.data());
  return values;
}

inline void write(const std::vector<double>& values, const Tensor& tensor) {
  if (!values.empty())
    rows_for<double>().store(tensor.dtype, values.data(), static_cast<int64_t>(values.size()), tensor.data,
                             tensor.strides[0]);
}

struct SideTerms {
  double loss = 0;
  std::vector<double> coefficient;  // d loss / d logits
};

// Of the real and of the generated side; dtype: the losses'.
std::pair<SideTerms, SideTerms> attack_terms(const Logits& logits, DType dtype);

}  // namespace dat::cpu
