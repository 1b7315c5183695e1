// Drawing a batch on the CPU. There are 256 pixels, so that a table in the first-level cache is all the arithmetic.
#include "../sample.h"

#include <array>
#include <stdexcept>
#include <string>

#include "parallel.h"
#include "rows.h"

namespace dat::cpu {
namespace {

void check_index(const Samples& samples) {
  for (int64_t b = 0; b < samples.out.shape[0]; ++b) {
    const int64_t index = samples.index[b * samples.index_stride];
    if (index < 0 || index >= samples.shape[0])
      throw std::out_of_range("index must be at least 0 and below the number of images, " +
                              std::to_string(samples.shape[0]) + "; got " + std::to_string(index));
  }
}

struct Steps {  // from a pixel to the next: in a row, in a column, in another channel
  int64_t w, h, c;
};

// S holds an element of the output, whatever its dtype.
template <class S>
void draw(const Samples& samples) {
  const Tensor& out = samples.out;
  std::array<float, 256> numbers;
  for (int value = 0; value < 256; ++value) numbers[value] = pixel(static_cast<uint8_t>(value));
  std::array<S, 256> table;
  rows_for<float>().store(out.dtype, numbers.data(), 256, table.data(), 1);

  const int64_t channels = out.shape[1], height = out.shape[2], width = out.shape[3];
  const Steps to{out.strides[3], out.strides[2], out.strides[1]};
  parallel_for(out.shape[0], out.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Steps from{samples.strides[3], samples.strides[2], samples.strides[1]};
      const uint8_t* image = samples.images + samples.index[b * samples.index_stride] * samples.strides[0];
      if (samples.mirrored && samples.mirrored[b * samples.mirrored_stride]) {
        image += (width - 1) * from.w;
        from.w = -from.w;
      }
      S* target = reinterpret_cast<S*>(out.data) + b * out.strides[0];
      for (int64_t h = 0; h < height; ++h)
        for (int64_t c = 0; c < channels; ++c) {  // inside a row, so that a channels_last one is still in the cache
          const uint8_t* source = image + h * from.h + c * from.c;
          S* row = target + h * to.h + c * to.c;
          for (int64_t w = 0; w < width; ++w) row[w * to.w] = table[source[w * from.w]];
        }
    }
  });
}

}  // namespace

void sample_images(const Samples& samples) {
  check_index(samples);
  switch (item_size(samples.out.dtype)) {
    case 8: return draw<uint64_t>(samples);
    case 4: return draw<uint32_t>(samples);
    default: return draw<uint16_t>(samples);
  }
}

}  // namespace dat::cpu
