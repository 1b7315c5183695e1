// Tensors as the kernels see them: a pointer, a dtype, sizes and strides. Nothing here owns memory or knows torch.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace dat {

enum class DType : int { float64, float32, float16, bfloat16 };
inline constexpr const char* kDTypes[] = {"float64", "float32", "float16", "bfloat16"};  // torch's names, in this order

inline int64_t item_size(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

struct Tensor {
  char* data = nullptr;
  DType dtype = DType::float32;
  std::vector<int64_t> shape, strides;  // in elements

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t size : shape) n *= size;
    return n;
  }
};

// How several tensors of one shape [images, ...] are walked together: the dimensions inside an image, fastest first,
// merged wherever every tensor allows it. Contiguous or equally channels_last images become one dimension of stride 1.
constexpr int kMaxDims = 8;
constexpr int kOperands = 4;  // x, v, adv, grad

struct Layout {
  int64_t images = 0, numel = 1;  // numel: elements in one image
  int dims = 0;
  std::array<int64_t, kMaxDims> size{};
  std::array<std::array<int64_t, kMaxDims>, kOperands> stride{};  // [operand][dimension]
  std::array<int64_t, kOperands> image_stride{};

  // True where this operand's images are walked element after element.
  bool dense(int operand) const { return dims == 0 || (dims == 1 && stride[operand][0] == 1); }
};

// Operands that are absent (null data) get stride 0. The order of the dimensions is that of `order`'s memory.
inline Layout make_layout(const std::array<const Tensor*, kOperands>& operands, int order) {
  const std::vector<int64_t>& shape = operands[order]->shape;
  Layout layout;
  layout.images = shape.empty() ? 1 : shape[0];
  std::vector<size_t> dims;
  for (size_t d = 1; d < shape.size(); ++d) {
    layout.numel *= shape[d];
    if (shape[d] != 1) dims.push_back(d);
  }
  const auto stride_of = [&](int k, size_t d) { return operands[k]->data ? operands[k]->strides[d] : int64_t{0}; };
  std::stable_sort(dims.begin(), dims.end(), [&](size_t a, size_t b) {
    return std::llabs(stride_of(order, a)) < std::llabs(stride_of(order, b)) ||
           (stride_of(order, a) == stride_of(order, b) && a > b);
  });
  for (int k = 0; k < kOperands; ++k) layout.image_stride[k] = shape.empty() ? 0 : stride_of(k, 0);
  for (size_t d : dims) {
    bool merges = layout.dims > 0;
    for (int k = 0; merges && k < kOperands; ++k)
      merges = stride_of(k, d) == layout.stride[k][layout.dims - 1] * layout.size[layout.dims - 1];
    if (merges) {
      layout.size[layout.dims - 1] *= shape[d];
      continue;
    }
    if (layout.dims == kMaxDims)
      throw std::invalid_argument(
          "images of more than 8 separately strided dimensions are not supported; call .contiguous() first");
    layout.size[layout.dims] = shape[d];
    for (int k = 0; k < kOperands; ++k) layout.stride[k][layout.dims] = stride_of(k, d);
    ++layout.dims;
  }
  return layout;
}

}  // namespace dat
