// The CUDA launchers, kernels and plan behind C functions for ctypes; tests/emulated_cuda.py calls them.
#include <cxxabi.h>
#include <dlfcn.h>

#include <sstream>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"
// The real sources, after every system header.
#include "../../csrc/cuda/attack.cu"
#include "../../csrc/cuda/sample.cu"

using namespace dat;

namespace {

struct CTensor {
  char* data;
  int dtype, dims;
  int64_t shape[8], strides[8];
};

Tensor tensor_of(const CTensor& c) {
  Tensor t;
  t.data = c.data;
  t.dtype = static_cast<DType>(c.dtype);
  t.shape.assign(c.shape, c.shape + c.dims);
  t.strides.assign(c.strides, c.strides + c.dims);
  return t;
}

struct Options {
  int objective, formulation, norm;
  double eps, clip_min, clip_max;
};

Logits logits_of(const CTensor* c, const Options& o) {
  return {tensor_of(c[0]),
          tensor_of(c[1]),
          tensor_of(c[2]),
          tensor_of(c[3]),
          static_cast<Objective>(o.objective),
          static_cast<Formulation>(o.formulation)};
}

Images images_of(const CTensor* c) {  // x, v, adv, grad, norms, weight
  return {tensor_of(c[0]), tensor_of(c[1]), tensor_of(c[2]), tensor_of(c[3]), tensor_of(c[4]), tensor_of(c[5])};
}

Perturbation perturbation_of(const Options& o) { return {o.eps, static_cast<Norm>(o.norm), o.clip_min, o.clip_max}; }

template <class Call>
int guarded(char* error, const Call& call) {
  try {
    call();
    return 0;
  } catch (const std::exception& e) {
    std::strncpy(error, e.what(), 255);
    return 1;
  }
}

// A line for each launch: the kernel, and what decides the kernel's way.
std::string launches;

void note_launch(const void* kernel, const void* args) {
  Dl_info symbol{};
  dladdr(kernel, &symbol);
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(symbol.dli_sname, nullptr, nullptr, nullptr),
                                                    std::free);
  std::ostringstream line;
  line << name.get();
  if (std::strstr(name.get(), "images_kernel")) {
    const auto& a = *static_cast<const cuda::ImagesArgs*>(args);
    const auto any = [&](auto member) { return (a.side[0].*member).data || (a.side[1].*member).data; };
    const dat_emulation::Device& d = dat_emulation::device;
    line << "|threads=" << d.last_threads << "|cluster=" << a.cluster << "|kept=" << a.kept
         << "|share=" << std::max(a.side[0].share, a.side[1].share) << "|attack=" << a.attack << "|reduce=" << a.reduce
         << "|coefficient=" << any(&cuda::SideArgs::coefficient) << "|weight=" << any(&cuda::SideArgs::weight)
         << "|grad=" << any(&cuda::SideArgs::grad) << "|norms=" << any(&cuda::SideArgs::norms)
         << "|empty=" << (a.side[0].tasks == 0 || a.side[1].tasks == 0);
  }
  if (std::strstr(name.get(), "terms_kernel"))
    line << "|attack=" << (static_cast<const cuda::TermsArgs*>(args)->coefficient[0].data != nullptr);
  if (std::strstr(name.get(), "sample_kernel"))
    line << "|mirrored=" << (static_cast<const cuda::SampleArgs*>(args)->mirrored != nullptr);
  launches += line.str() + "\n";
}

}  // namespace

extern "C" {

// Of all launches since this was last called.
const char* noted_launches() {
  static std::string noted;
  noted = std::exchange(launches, {});
  dat_emulation::note = note_launch;
  return noted.c_str();
}

dat_emulation::Device* emulated_device() { return &dat_emulation::device; }

int attack_loss(const CTensor* logits, const CTensor* losses, const CTensor* out, const Options* o, char* error) {
  return guarded(error, [&] {
    cuda::attack_loss(logits_of(logits, *o), tensor_of(*losses), tensor_of(out[0]), tensor_of(out[1]),
                      dat_emulation::device.index, nullptr);
  });
}

int logit_terms(const CTensor* logits, double weight, double floor, const CTensor* out, const Options* o, char* error) {
  return guarded(error, [&] {
    const TermOutputs outputs = {tensor_of(out[0]), tensor_of(out[1]), tensor_of(out[2]), tensor_of(out[3]),
                                 tensor_of(out[4])};
    cuda::logit_terms(logits_of(logits, *o), {weight, floor}, outputs, dat_emulation::device.index, nullptr);
  });
}

int sample_images(const CTensor* inputs, const CTensor* out, char* error) {  // images, index, mirrored
  return guarded(error, [&] {
    Samples samples;
    const Tensor images = tensor_of(inputs[0]);
    samples.images = reinterpret_cast<const uint8_t*>(images.data);
    samples.shape = images.shape, samples.strides = images.strides;
    samples.index = reinterpret_cast<const int64_t*>(inputs[1].data), samples.index_stride = inputs[1].strides[0];
    samples.mirrored = reinterpret_cast<const bool*>(inputs[2].data), samples.mirrored_stride = inputs[2].strides[0];
    samples.out = tensor_of(*out);
    cuda::sample_images(samples, dat_emulation::device.index, nullptr);
  });
}

int perturb(const CTensor* images, const Options* o, char* error) {
  return guarded(error,
                 [&] { cuda::perturb(images_of(images), perturbation_of(*o), dat_emulation::device.index, nullptr); });
}

int attack_step(const CTensor* logits, const CTensor* real, const CTensor* fake, const CTensor* losses,
                const CTensor* workspace, const Options* o, char* error) {
  return guarded(error, [&] {
    cuda::attack_step(logits_of(logits, *o), images_of(real), images_of(fake), perturbation_of(*o), tensor_of(*losses),
                      workspace ? tensor_of(*workspace) : Tensor{}, dat_emulation::device.index, nullptr);
  });
}

int64_t workspace_numel(int64_t real, int64_t fake) { return cuda::workspace_numel(real, fake); }

struct CPlan {
  int64_t tasks[2], slices[2], share[2], grid, kept, shared;
  int threads, cluster;
};

CPlan make_plan(const int64_t* images, const int64_t* slots, int reduce, int depth, int64_t slot_bytes, int threads,
                int cluster, int64_t shared, int64_t grid) {
  const cuda::Work work[2] = {{images[0], slots[0]}, {images[1], slots[1]}};
  const cuda::Plan p = cuda::make_plan(work, reduce, depth, slot_bytes, {threads, cluster, shared, grid});
  return {{p.tasks[0], p.tasks[1]},
          {p.slices[0], p.slices[1]},
          {p.share[0], p.share[1]},
          p.grid,
          p.kept,
          p.shared,
          p.threads,
          p.cluster};
}

int64_t slots_of(int64_t numel, int64_t slot, int aligned) { return cuda::slots_of(numel, slot, aligned); }

// The offset at which a kernel finds an element of a strided image.
int64_t element_offset(const CTensor* tensor, int64_t element) {
  const Tensor t = tensor_of(*tensor), absent;
  const Layout layout = make_layout({&t, &absent, &t, &absent}, 2);
  cuda::Operand operand;
  cuda::Walk walk;
  walk.numel = layout.numel, walk.dims = layout.dims;
  std::copy(layout.size.begin(), layout.size.end(), walk.size);
  std::copy(layout.stride[0].begin(), layout.stride[0].end(), operand.stride);
  return cuda::offset_of(operand, walk, element);
}

}  // extern "C"
