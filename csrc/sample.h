// A batch drawn from images of bytes: out[b] = images[index[b]] / 127.5 - 1, mirrored left to right where asked for.
#pragma once

#include "formulas.h"
#include "tensor.h"

namespace dat {
inline namespace DAT_FORMULAS {

// A byte as a number in [-1, 1]: torch's byte.float().div_(127.5).sub_(1), bit for bit.
DAT_HD inline float pixel(uint8_t byte) { return static_cast<float>(byte) / 127.5f - 1.0f; }

}  // namespace DAT_FORMULAS

struct Samples {
  const uint8_t* images = nullptr;      // [number, channels, height, width]
  std::vector<int64_t> shape, strides;  // of the images
  const int64_t* index = nullptr;       // [batch]
  int64_t index_stride = 1;
  const bool* mirrored = nullptr;  // [batch]; null: none is
  int64_t mirrored_stride = 1;
  Tensor out;  // [batch, channels, height, width]
};

namespace cpu {

void sample_images(const Samples& samples);  // throws std::out_of_range

}  // namespace cpu
}  // namespace dat
