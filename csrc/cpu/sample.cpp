// Drawing a batch on the CPU: some rows of a channel at a time, converted where they are written or in the first-level
// cache.
#include "../sample.h"

#include <stdexcept>
#include <string>

#include "parallel.h"
#include "rows.h"

namespace dat::cpu {
namespace {

constexpr int64_t kChunk = 1024;  // elements converted at a time

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

// T: what the output's dtype is written from.
template <class T>
class Draw {
 public:
  explicit Draw(const Samples& samples) : samples_(samples) {}

  void run() const {
    parallel_for(out_.shape[0], out_.numel(), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) image(b);
    });
  }

 private:
  void image(int64_t b) const {
    Steps from{samples_.strides[3], samples_.strides[2], samples_.strides[1]};
    const uint8_t* bytes = samples_.images + samples_.index[b * samples_.index_stride] * samples_.strides[0];
    if (samples_.mirrored && samples_.mirrored[b * samples_.mirrored_stride]) {
      bytes += (width_ - 1) * from.w;
      from.w = -from.w;
    }
    char* target = out_.data + b * out_.strides[0] * size_;
    const int64_t columns = std::min(width_, kChunk), rows = kChunk / columns;
    for (int64_t h = 0; h < height_; h += rows)
      for (int64_t w = 0; w < width_; w += columns)
        for (int64_t c = 0; c < out_.shape[1]; ++c)  // inside, so that channels_last rows are still in the cache
          part(bytes + h * from.h + w * from.w + c * from.c, from, std::min(rows, height_ - h),
               std::min(columns, width_ - w), target + (h * to_.h + w * to_.w + c * to_.c) * size_);
  }

  // Some rows of a channel, or a part of one row.
  void part(const uint8_t* bytes, const Steps& from, int64_t rows, int64_t columns, char* target) const {
    const bool even = rows == 1 || to_.h == columns * to_.w;  // all elements are equally far from one another
    if (direct_ && even) return rows_.pixels(bytes, from.w, from.h, rows, columns, reinterpret_cast<T*>(target));
    alignas(64) T buffer[kChunk];
    rows_.pixels(bytes, from.w, from.h, rows, columns, buffer);
    if (even) return rows_.store(out_.dtype, buffer, rows * columns, target, to_.w);
    for (int64_t r = 0; r < rows; ++r)
      rows_.store(out_.dtype, buffer + r * columns, columns, target + r * to_.h * size_, to_.w);
  }

  const Samples& samples_;
  const Tensor& out_ = samples_.out;
  const int64_t height_ = out_.shape[2], width_ = out_.shape[3], size_ = item_size(out_.dtype);
  const Steps to_{out_.strides[3], out_.strides[2], out_.strides[1]};
  const bool direct_ = size_ == sizeof(T) && to_.w == 1;
  const Rows<T>& rows_ = rows_for<T>();
};

}  // namespace

void sample_images(const Samples& samples) {
  check_index(samples);
  if (samples.out.numel() == 0) return;
  if (samples.out.dtype == DType::float64) return Draw<double>(samples).run();
  Draw<float>(samples).run();
}

}  // namespace dat::cpu
