// A few cases of every path as a program of its own, for the sanitizers. Buffers are exactly as large as they must be.
#include <cstdio>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"
// The real sources, after every system header.
#include "../../csrc/cuda/attack.cu"

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

}  // namespace

int main() {
  constexpr DType f64 = DType::float64, f32 = DType::float32, f16 = DType::float16, bf16 = DType::bfloat16;
  for (const Norm norm : {Norm::none, Norm::l2, Norm::linf}) {
    run(3, 301, norm, f32, f32, 0, 1, false);
    run(2, 600, norm, f16, f16, 1, 1, false);
  }
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
