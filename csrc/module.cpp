// The whole boundary between Python and the kernels: plain numbers come in, no torch header is needed.
//
// A tensor arrives as Tensor(address, dtype, shape, strides). Python (datgan_fast/method/native.py) has checked
// devices, shapes and lifetimes before.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <optional>

#include "attack.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "sample.h"

namespace py = pybind11;
using namespace dat;

#ifdef DAT_WITH_CUDA
#include "cuda/attack.h"
#include "cuda/device.h"
#include "cuda/sample.h"
#endif

namespace {

// A Python tuple, in which a name's place is its number here.
template <size_t kCount>
py::tuple names(const char* const (&list)[kCount]) {
  py::tuple result(kCount);
  for (size_t i = 0; i < kCount; ++i) result[i] = list[i];
  return result;
}

Tensor make_tensor(std::uintptr_t address, int dtype, std::vector<int64_t> shape, std::vector<int64_t> strides) {
  Tensor tensor;
  // An empty tensor may have a null address; "absent" is a default Tensor, told apart by this.
  tensor.data = reinterpret_cast<char*>(address ? address : alignof(std::max_align_t));
  tensor.dtype = static_cast<DType>(dtype);
  tensor.shape = std::move(shape);
  tensor.strides = std::move(strides);
  return tensor;
}

Logits make_logits(const Tensor& real, const Tensor& fake, const Tensor& target_real, const Tensor& target_fake,
                   int objective, int formulation) {
  return {
      real, fake, target_real, target_fake, static_cast<Objective>(objective), static_cast<Formulation>(formulation)};
}

Images make_images(const Tensor& x, const Tensor& v, const Tensor& adv, const std::optional<Tensor>& grad,
                   const std::optional<Tensor>& norms, const std::optional<Tensor>& weight) {
  return {x, v, adv, grad.value_or(Tensor{}), norms.value_or(Tensor{}), weight.value_or(Tensor{})};
}

TermOutputs make_term_outputs(const Tensor& weight_real, const Tensor& weight_fake, const Tensor& sums,
                              const std::optional<Tensor>& coefficient_real,
                              const std::optional<Tensor>& coefficient_fake) {
  return {weight_real, weight_fake, sums, coefficient_real.value_or(Tensor{}), coefficient_fake.value_or(Tensor{})};
}

Samples make_samples(std::uintptr_t images, std::vector<int64_t> shape, std::vector<int64_t> strides,
                     std::uintptr_t index, int64_t index_stride, std::uintptr_t mirrored, int64_t mirrored_stride,
                     const Tensor& out) {
  return {reinterpret_cast<const uint8_t*>(images),
          std::move(shape),
          std::move(strides),
          reinterpret_cast<const int64_t*>(index),
          index_stride,
          reinterpret_cast<const bool*>(mirrored),
          mirrored_stride,
          out};
}

Perturbation make_perturbation(double eps, int norm, std::optional<double> clip_min, std::optional<double> clip_max) {
  Perturbation perturbation{eps, static_cast<Norm>(norm)};
  if (clip_min) perturbation.clip_min = *clip_min;
  if (clip_max) perturbation.clip_max = *clip_max;
  return perturbation;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "C++ and CUDA kernels of datgan_fast";
  m.attr("SOURCE_DIGEST") = DAT_SOURCE_DIGEST;
  m.attr("OBJECTIVES") = names(kObjectives);
  m.attr("FORMULATIONS") = names(kFormulations);
  m.attr("NORMS") = names(kNorms);
  m.attr("DTYPES") = names(kDTypes);

  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<Tensor>(m, "Tensor").def(py::init(&make_tensor));
  py::class_<Logits>(m, "Logits").def(py::init(&make_logits));
  py::class_<Images>(m, "Images").def(py::init(&make_images));
  py::class_<Perturbation>(m, "Perturbation").def(py::init(&make_perturbation));

  py::class_<Weighting>(m, "Weighting").def(py::init([](double weight, double floor) {
    return Weighting{weight, floor};
  }));
  py::class_<TermOutputs>(m, "TermOutputs").def(py::init(&make_term_outputs));
  py::class_<Samples>(m, "Samples").def(py::init(&make_samples));

  m.def("cpu_attack_loss", &cpu::attack_loss, Release());
  m.def("cpu_logit_terms", &cpu::logit_terms, Release());
  m.def("cpu_perturb", &cpu::perturb, Release());
  m.def("cpu_attack_step", &cpu::attack_step, Release());
  m.def("cpu_sample_images", &cpu::sample_images, Release());
  m.def(
      "cpu_info", [] { return py::make_tuple(cpu::instruction_set(), cpu::has_openmp()); },
      "(instruction set, whether torch's OpenMP threads were found)");
#ifdef DAT_WITH_CUDA
  m.def("cuda_device_problem", &cuda::device_problem, "Why no CUDA kernel can run here; empty if one can");
  m.attr("CUDA_ARCHITECTURES") = DAT_CUDA_ARCHITECTURES;
  // The last two arguments of each: device index and the stream's address.
  m.def(
      "cuda_attack_loss",
      [](const Logits& logits, const Tensor& losses, const Tensor& real, const Tensor& fake, int device,
         std::uintptr_t stream) {
        cuda::attack_loss(logits, losses, real, fake, device, reinterpret_cast<void*>(stream));
      },
      Release());
  m.def(
      "cuda_logit_terms",
      [](const Logits& logits, const Weighting& how, const TermOutputs& out, int device, std::uintptr_t stream) {
        cuda::logit_terms(logits, how, out, device, reinterpret_cast<void*>(stream));
      },
      Release());
  m.def(
      "cuda_perturb",
      [](const Images& images, const Perturbation& perturbation, int device, std::uintptr_t stream) {
        cuda::perturb(images, perturbation, device, reinterpret_cast<void*>(stream));
      },
      Release());
  m.def(
      "cuda_attack_step",
      [](const Logits& logits, const Images& real, const Images& fake, const Perturbation& perturbation,
         const Tensor& losses, const std::optional<Tensor>& workspace, int device, std::uintptr_t stream) {
        cuda::attack_step(logits, real, fake, perturbation, losses, workspace.value_or(Tensor{}), device,
                          reinterpret_cast<void*>(stream));
      },
      Release());
  m.def(
      "cuda_sample_images",
      [](const Samples& samples, int device, std::uintptr_t stream) {
        cuda::sample_images(samples, device, reinterpret_cast<void*>(stream));
      },
      Release());
  m.def("cuda_workspace_numel", &cuda::workspace_numel);
#endif
}
