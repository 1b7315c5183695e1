// A few cases of every path as a program of its own, for the sanitizers. Buffers are exactly as large as they must be.
#include <cstdio>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"
// The real sources, after every system header.
#include "../../csrc/cuda/attack.cu"
#include "../../csrc/cuda/sample.cu"

using namespace dat;

namespace {

struct Buffer {
  Buffer(int64_t numel, DType dtype, double scale) : dtype(dtype), bytes(new char[numel * item_size(dtype)]) {
    for (int64_t i = 0; i < numel; ++i) {
      const double value = scale * std::sin(1.0 + 0.7 * static_cast<double>(i));
      const float rounded = static_cast<float>(value);
      if (dtype == DType::float64) reinterpret_cast<double*>(bytes.get())[i] = value;
      if (dtype == DType::float32) reinterpret_cast<float*>(bytes.get())[i] = rounded;
      if (dtype == DType::float16) reinterpret_cast<__half*>(bytes.get())[i] = __float2half_rn(rounded);
      if (dtype == DType::bfloat16) reinterpret_cast<__nv_bfloat16*>(bytes.get())[i] = __float2bfloat16_rn(rounded);
    }
  }
  Tensor view(int64_t images, int64_t numel, int64_t offset, int64_t image_stride, int64_t stride) const {
    return {bytes.get() + offset * item_size(dtype), dtype, {images, numel}, {image_stride, stride}};
  }
  Tensor vector(int64_t count) const { return {bytes.get(), dtype, {count}, {1}}; }
  float at(int64_t i) const { return reinterpret_cast<const float*>(bytes.get())[i]; }

  DType dtype;
  std::unique_ptr<char[]> bytes;
};

bool failed = false;

dat_emulation::Device& another_device() {  // of which nothing is known yet
  const int index = dat_emulation::device.index + 1;
  dat_emulation::device = {};
  dat_emulation::device.index = index;
  return dat_emulation::device;
}

// m real and m generated images; `padding` elements before each image make it misaligned, `stride` makes it strided.
void run(int64_t m, int64_t numel, Norm norm, DType x_dtype, DType v_dtype, int64_t padding, int64_t stride,
         bool workspace) {
  const int64_t pitch = (numel - 1) * stride + 1 + padding;
  const Buffer real(m, DType::float32, 1), fake(m, DType::float32, 2), norms(m, DType::float32, 0);
  const Buffer losses(2, DType::float32, 0), room(2 * m, DType::float64, 0);
  const Buffer x[2] = {{m * pitch, x_dtype, 1}, {m * pitch, x_dtype, 1}};
  const Buffer v[2] = {{m * pitch, v_dtype, 1}, {m * pitch, v_dtype, 1}};
  const Buffer adv[2] = {{m * pitch, x_dtype, 9}, {m * pitch, x_dtype, 9}}, grad(m * pitch, v_dtype, 9);
  const auto view = [&](const Buffer& b) { return b.view(m, numel, padding, pitch, stride); };
  const Images images[2] = {{view(x[0]), view(v[0]), view(adv[0]), view(grad), norms.vector(m), {}},
                            {view(x[1]), view(v[1]), view(adv[1]), {}, {}, real.vector(m)}};
  const Logits logits = {real.vector(m), fake.vector(m),         real.vector(m),
                         fake.vector(m), Objective::wasserstein, Formulation::eq10};
  cuda::attack_step(logits, images[0], images[1], {0.5, norm}, losses.vector(2),
                    workspace ? room.vector(2 * m) : Tensor{}, dat_emulation::device.index, nullptr);

  double mean = 0, loss = 0;
  for (int64_t i = 0; i < m; ++i) mean += fake.at(i) / static_cast<double>(m);
  for (int64_t i = 0; i < m; ++i) {
    loss += std::fabs(real.at(i) - mean);
    double squares = 0;
    for (int64_t k = 0; k < numel && v_dtype == DType::float32; ++k)
      squares += std::pow(v[0].at(i * pitch + padding + k * stride), 2);
    if (v_dtype == DType::float32 && std::fabs(norms.at(i) / std::sqrt(squares) - 1) > 1e-5) failed = true;
  }
  if (std::fabs(losses.at(0) - loss) > 1e-5 * loss) failed = true;
}

void run_terms(int64_t m, int64_t n, DType dtype, bool attack) {
  const Buffer real(m, dtype, 1), fake(n, dtype, 2), weight_real(m, dtype, 0), weight_fake(n, dtype, 0);
  const Buffer sums(4, DType::float32, 9), coefficient_real(m, DType::float32, 0),
      coefficient_fake(n, DType::float32, 0);
  const Logits logits = {real.vector(m), fake.vector(n),           real.vector(m),
                         fake.vector(n), Objective::least_squares, Formulation::batch_mean};
  cuda::logit_terms(logits, {0.5, 1e-20},
                    {weight_real.vector(m), weight_fake.vector(n), sums.vector(4),
                     attack ? coefficient_real.vector(m) : Tensor{}, attack ? coefficient_fake.vector(n) : Tensor{}},
                    dat_emulation::device.index, nullptr);
  if (dtype != DType::float32) return;
  double loss = 0;
  for (int64_t i = 0; i < m; ++i) loss += std::pow(real.at(i) - 1, 2) / static_cast<double>(m);
  for (int64_t i = 0; i < n; ++i) loss += std::pow(fake.at(i), 2) / static_cast<double>(n);
  if (std::fabs(sums.at(0) - loss) > 1e-5 * loss) failed = true;
}

void run_sample(DType dtype, int64_t w_stride, bool mirror) {
  constexpr int64_t count = 3, batch = 5, height = 11, width = 13;
  const std::unique_ptr<uint8_t[]> images(new uint8_t[count * height * width]);
  for (int64_t i = 0; i < count * height * width; ++i) images[i] = static_cast<uint8_t>(i * 7);
  const std::unique_ptr<int64_t[]> index(new int64_t[batch]{2, 0, -9, 3, int64_t{1} << 40});
  const std::unique_ptr<bool[]> mirrored(new bool[batch]{true, false, true, true, false});
  const int64_t h_stride = w_stride == 1 ? width : 1, image_stride = height * width;
  const Buffer out(batch * image_stride, dtype, 9);
  cuda::sample_images({images.get(),
                       {count, 1, height, width},
                       {image_stride, image_stride, width, 1},
                       index.get(),
                       1,
                       mirror ? mirrored.get() : nullptr,
                       1,
                       {out.bytes.get(), dtype, {batch, 1, height, width}, {image_stride, 1, h_stride, w_stride}}},
                      dat_emulation::device.index, nullptr);
  if (dtype != DType::float32) return;
  const int64_t drawn[batch] = {2, 0, 0, 2, 2};
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < height; ++h)
      for (int64_t w = 0; w < width; ++w) {
        const int64_t from = mirror && mirrored[b] ? width - 1 - w : w;
        if (out.at(b * image_stride + h * h_stride + w * w_stride) !=
            pixel(images[drawn[b] * image_stride + h * width + from]))
          failed = true;
      }
}

}  // namespace

int main() {
  constexpr DType f64 = DType::float64, f32 = DType::float32, f16 = DType::float16, bf16 = DType::bfloat16;
  for (const Norm norm : {Norm::none, Norm::l2, Norm::linf, Norm::clamp}) {
    run(3, 301, norm, f32, f32, 0, 1, false);
    run(2, 600, norm, f16, f16, 1, 1, false);
  }
  run_terms(150, 3, f32, true);
  run_terms(0, 70, f32, true);
  run_terms(5, 70, f16, false);
  for (const bool mirror : {false, true}) run_sample(f32, 1, mirror), run_sample(f32, 11, mirror);
  run_sample(bf16, 1, true);
  run(2, 77, Norm::l2, bf16, bf16, 0, 3, false);
  run(2, 77, Norm::linf, f32, bf16, 3, 1, true);
  run(2, 77, Norm::l2, f64, f16, 3, 1, false);
  run(1, 9000, Norm::l2, f32, f32, 0, 1, false);  // a cluster, some of it kept
  another_device().shared = 1024;
  run(1, 2500, Norm::l2, f32, f32, 1, 1, false);  // a cluster that keeps nothing
  another_device().clusters = 0;
  dat_emulation::device.grid = 2;
  run(2, 1200, Norm::l2, f32, f32, 1, 1, false);  // one block for several images
  const int index = another_device().index;
  const auto ask = [&] { cuda::limits_of("", cuda::images_kernel<cuda::Mixed<float>>, index); };
  std::thread other(ask);  // two threads that are the first on a device
  ask();
  other.join();
  std::puts(failed ? "a result is wrong" : "all cases agree");
  return failed;
}
