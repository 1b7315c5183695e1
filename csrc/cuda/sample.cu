// Drawing a batch: gather, mirror, normalise and cast in one launch.
//
// A block writes a share of one image, in the order in which the output lies in memory; each thread takes elements a
// block's width apart, so that a warp's writes are whole lines. The bytes read are few and cached.
#include <cuda_runtime.h>

#include <utility>

#include "element.cuh"
#include "launch.h"
#include "sample.h"

namespace dat::cuda {

constexpr int kSampleDims = 3;  // an image's: channels, rows and columns, by the output's strides, fastest first
constexpr int kSampleThreads = 256;
constexpr int kElementsPerThread = 4;

struct SampleArgs {
  const uint8_t* images;
  const int64_t* index;
  const bool* mirrored;
  char* out;
  int64_t count, image_stride, index_stride, mirrored_stride, out_stride;  // count: of images to draw from
  int64_t size[kSampleDims], step[kSampleDims], mirrored_step[kSampleDims], out_step[kSampleDims];
  int64_t mirrored_start;  // of a mirrored image's first pixel
  int64_t numel, slices, tasks;
};

template <class S>
__global__ void __launch_bounds__(kSampleThreads) sample_kernel(const __grid_constant__ SampleArgs args) {
  for (int64_t task = blockIdx.x; task < args.tasks; task += gridDim.x) {
    const int64_t b = quotient(task, args.slices), slice = task - b * args.slices;
    int64_t index = args.index[b * args.index_stride];
    index = index < 0 ? 0 : index < args.count ? index : args.count - 1;  // nothing else is ours to read
    const bool mirrored = args.mirrored && args.mirrored[b * args.mirrored_stride];
    const uint8_t* image = args.images + index * args.image_stride + (mirrored ? args.mirrored_start : 0);
    S* out = reinterpret_cast<S*>(args.out) + b * args.out_stride;
    int64_t element = slice * kElementsPerThread * blockDim.x + threadIdx.x;
    for (int k = 0; k < kElementsPerThread && element < args.numel; ++k, element += blockDim.x) {
      int64_t rest = element, from = 0, to = 0;
#pragma unroll
      for (int d = 0; d < kSampleDims; ++d) {
        const int64_t next = quotient(rest, args.size[d]), i = rest - next * args.size[d];
        from += i * (mirrored ? args.mirrored_step[d] : args.step[d]);
        to += i * args.out_step[d];
        rest = next;
      }
      out[to] = narrow<S>(pixel(image[from]));
    }
  }
}

namespace {

SampleArgs args_of(const Samples& samples) {
  const Tensor& out = samples.out;
  int order[kSampleDims] = {3, 2, 1};  // fastest first
  std::stable_sort(order, order + kSampleDims, [&](int a, int b) { return out.strides[a] < out.strides[b]; });
  SampleArgs args{};
  args.images = samples.images, args.index = samples.index, args.mirrored = samples.mirrored, args.out = out.data;
  args.count = samples.shape[0], args.image_stride = samples.strides[0], args.out_stride = out.strides[0];
  args.index_stride = samples.index_stride, args.mirrored_stride = samples.mirrored_stride;
  args.numel = 1;
  for (int k = 0; k < kSampleDims; ++k) {
    const int d = order[k];
    args.size[k] = out.shape[d], args.out_step[k] = out.strides[d];
    args.step[k] = samples.strides[d], args.mirrored_step[k] = d == 3 ? -samples.strides[d] : samples.strides[d];
    args.numel *= out.shape[d];
  }
  args.mirrored_start = (out.shape[3] - 1) * samples.strides[3];
  return args;
}

template <class S>
void run(SampleArgs args, int64_t batch, int device, void* stream) {
  const char* operation = "sample_images";
  const Limits& limits = limits_of(operation, sample_kernel<S>, device);
  Plan plan;
  plan.threads = std::min(limits.threads, kSampleThreads);
  args.slices = divide_up(args.numel, int64_t{plan.threads} * kElementsPerThread);
  args.tasks = batch * args.slices;
  plan.grid = std::min(args.tasks, limits.grid);
  launch(operation, sample_kernel<S>, plan, args, stream);
}

}  // namespace

void sample_images(const Samples& samples, int device, void* stream) {
  if (samples.out.numel() == 0) return;
  check(cudaSetDevice(device), "sample_images");
  const SampleArgs args = args_of(samples);
  const int64_t batch = samples.out.shape[0];
  switch (samples.out.dtype) {
    case DType::float64: return run<double>(args, batch, device, stream);
    case DType::float32: return run<float>(args, batch, device, stream);
    case DType::float16: return run<__half>(args, batch, device, stream);
    case DType::bfloat16: return run<__nv_bfloat16>(args, batch, device, stream);
  }
}

}  // namespace dat::cuda
