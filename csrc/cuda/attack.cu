// The launchers: from the tensors of csrc/attack.h to kernel arguments, launch geometry and the kernel for the dtypes.
#include <cuda_runtime.h>

#include "attack.h"
#include "images.cuh"
#include "launch.h"

namespace dat::cuda {
namespace {

enum { kX, kV, kAdv, kGrad };  // the order of make_layout's operands

Vector vector_of(const Tensor& tensor) {
  if (!tensor.data) return {};
  return {tensor.data, tensor.dtype, tensor.numel(), tensor.shape.empty() ? 1 : tensor.strides[0]};
}

LogitsArgs logits_of(const Logits& logits, const Tensor& losses) {
  LogitsArgs args;
  args.logits[0] = vector_of(logits.real), args.logits[1] = vector_of(logits.fake);
  args.targets[0] = vector_of(logits.target_real), args.targets[1] = vector_of(logits.target_fake);
  args.objective = logits.objective, args.formulation = logits.formulation;
  args.losses = vector_of(losses);
  return args;
}

bool wide(const Logits& logits) {
  for (const Tensor* t : {&logits.real, &logits.fake, &logits.target_real, &logits.target_fake})
    if (t->dtype == DType::float64) return true;
  return false;
}

Layout layout_of(const Images& images, bool flat) {
  Layout layout = make_layout({&images.x, &images.v, &images.adv, &images.grad}, kAdv);
  if (flat && !images.grad.data) flatten(layout, {kX, kV, kAdv});
  return layout;
}

Operand operand_of(const Tensor& tensor, const Layout& layout, int k) {
  Operand operand;
  operand.data = tensor.data;
  operand.dtype = tensor.dtype;
  operand.linear = is_linear(layout, k);
  operand.image_stride = layout.image_stride[k];
  std::copy(layout.stride[k].begin(), layout.stride[k].end(), operand.stride);
  return operand;
}

SideArgs side_of(const Images& images, const Layout& layout) {
  SideArgs side;
  side.x = operand_of(images.x, layout, kX), side.v = operand_of(images.v, layout, kV);
  side.adv = operand_of(images.adv, layout, kAdv), side.grad = operand_of(images.grad, layout, kGrad);
  side.walk.numel = layout.numel, side.walk.dims = layout.dims;
  std::copy(layout.size.begin(), layout.size.end(), side.walk.size);
  side.norms = vector_of(images.norms), side.weight = vector_of(images.weight);
  return side;
}

struct Pass {  // one launch over the images of one or both sides
  const char* operation;
  const Images* images[2] = {};  // null: no such side
  Layout layout[2];
  ImagesArgs args;
  int device;
  void* stream;
};

template <class A>
void run(Pass& pass) {
  Work work[2];
  for (int s = 0; s < 2; ++s) {
    if (!pass.images[s]) continue;
    const Tensor& adv = pass.images[s]->adv;
    const Layout& layout = pass.layout[s];
    const bool aligned = is_whole(reinterpret_cast<uintptr_t>(adv.data), item_size(adv.dtype), layout.images,
                                  layout.image_stride[kAdv], layout.numel, A::kSlot);
    work[s] = {layout.images, slots_of(layout.numel, A::kSlot, aligned)};
  }
  const Limits& limits = limits_of(pass.operation, images_kernel<A>, pass.device);
  const Plan plan = make_plan(work, pass.args.reduce, A::kDepth, sizeof(typename A::VSlot), limits);
  for (int s = 0; s < 2; ++s) {
    SideArgs& side = pass.args.side[s];
    side.tasks = plan.tasks[s], side.slices = plan.slices[s], side.share = plan.share[s];
  }
  pass.args.kept = plan.kept, pass.args.cluster = plan.cluster;
  launch(pass.operation, images_kernel<A>, plan, pass.args, pass.stream);
}

// Calls body(tensor, layout, operand) for the tensors of the images that there are, until it returns false.
template <class Body>
bool all_operands(const Pass& pass, const Body& body) {
  for (int s = 0; s < 2; ++s) {
    const Images* images = pass.images[s];
    if (!images || pass.layout[s].images == 0) continue;
    const Tensor* const operands[] = {&images->x, &images->v, &images->adv, &images->grad};
    for (int k : {kX, kV, kAdv, kGrad})
      if (operands[k]->data && !body(*operands[k], pass.layout[s], k)) return false;
  }
  return true;
}

template <class X, class V>
bool run_typed(Pass& pass, DType x, DType v) {
  constexpr int64_t slot = Typed<X, V, Reach::whole>::kSlot;
  const auto fits = [&](const Tensor& t, const Layout& layout, int k) {
    return t.dtype == (k == kX || k == kAdv ? x : v) && is_linear(layout, k);
  };
  const auto whole = [&](const Tensor& t, const Layout& layout, int k) {
    return is_whole(reinterpret_cast<uintptr_t>(t.data), item_size(t.dtype), layout.images, layout.image_stride[k],
                    layout.numel, slot);
  };
  if (!all_operands(pass, fits)) return false;
  if (all_operands(pass, whole))
    run<Typed<X, V, Reach::whole>>(pass);
  else
    run<Typed<X, V, Reach::edges>>(pass);
  return true;
}

// The dtypes that training uses have kernels of their own; every other mixture takes the general one.
void run_kernel(Pass& pass, bool wide_logits) {
  const auto narrow = [](const Tensor& t, const Layout&, int k) { return k > kV || t.dtype != DType::float64; };
  if (wide_logits || !all_operands(pass, narrow)) return run<Mixed<double>>(pass);
  if (run_typed<float, float>(pass, DType::float32, DType::float32) ||
      run_typed<__half, __half>(pass, DType::float16, DType::float16) ||
      run_typed<__nv_bfloat16, __nv_bfloat16>(pass, DType::bfloat16, DType::bfloat16) ||
      run_typed<float, __nv_bfloat16>(pass, DType::float32, DType::bfloat16))
    return;
  run<Mixed<float>>(pass);
}

void set_perturbation(ImagesArgs& args, const Perturbation& perturbation) {
  args.eps = perturbation.eps, args.norm = perturbation.norm;
  args.clip_min = perturbation.clip_min, args.clip_max = perturbation.clip_max;
}

void launch_loss(const char* operation, const Logits& logits, const Tensor& losses, Vector real, Vector fake,
                 int device, void* stream) {
  LossArgs args{logits_of(logits, losses), {real, fake}};
  int64_t most = 0;
  for (int s = 0; s < 2; ++s) most = std::max({most, args.logits.logits[s].count, args.logits.targets[s].count});
  const auto kernel = wide(logits) ? loss_kernel<double> : loss_kernel<float>;
  launch(operation, kernel, make_loss_plan(most, limits_of(operation, kernel, device)), args, stream);
}

}  // namespace

int64_t workspace_numel(int64_t real, int64_t fake) { return real + fake > kOneLaunchLogits ? real + fake : 0; }

void attack_loss(const Logits& logits, const Tensor& losses, const Tensor& coefficient_real,
                 const Tensor& coefficient_fake, int device, void* stream) {
  check(cudaSetDevice(device), "attack_loss");
  launch_loss("attack_loss", logits, losses, vector_of(coefficient_real), vector_of(coefficient_fake), device, stream);
}

void logit_terms(const Logits& logits, const Weighting& how, const TermOutputs& out, int device, void* stream) {
  check(cudaSetDevice(device), "logit_terms");
  TermsArgs args;
  args.sums = vector_of(out.sums);
  args.logits = logits_of(logits, out.sums);
  args.logits.losses.data += 2 * args.sums.stride * item_size(args.sums.dtype);
  args.weight[0] = vector_of(out.weight_real), args.weight[1] = vector_of(out.weight_fake);
  args.coefficient[0] = vector_of(out.coefficient_real), args.coefficient[1] = vector_of(out.coefficient_fake);
  int64_t most = 0;
  for (int s = 0; s < 2; ++s) {
    const int64_t count = args.logits.logits[s].count;
    most = std::max(most, count);
    if (count) args.factor[s] = -how.weight / static_cast<double>(count);
    if (count) args.floor[s] = how.floor / static_cast<double>(count);
  }
  const auto kernel = wide(logits) ? terms_kernel<double> : terms_kernel<float>;
  Plan plan = make_loss_plan(most, limits_of("logit_terms", kernel, device));
  plan.grid = 1;
  launch("logit_terms", kernel, plan, args, stream);
}

void perturb(const Images& images, const Perturbation& perturbation, int device, void* stream) {
  Pass pass{"perturb", {&images, nullptr}, {}, {}, device, stream};
  set_perturbation(pass.args, perturbation);
  pass.args.reduce = perturbation.norm == Norm::l2 || images.norms.data;
  pass.layout[0] = layout_of(images, !pass.args.reduce);
  if (pass.layout[0].images == 0 || (pass.layout[0].numel == 0 && !images.norms.data)) return;
  check(cudaSetDevice(device), "perturb");
  pass.args.side[0] = side_of(images, pass.layout[0]);
  run_kernel(pass, false);
}

void attack_step(const Logits& logits, const Images& real, const Images& fake, const Perturbation& perturbation,
                 const Tensor& losses, const Tensor& workspace, int device, void* stream) {
  check(cudaSetDevice(device), "attack_step");
  Pass pass{"attack_step", {&real, &fake}, {}, {}, device, stream};
  for (int s = 0; s < 2; ++s) {
    const Images& images = *pass.images[s];
    pass.layout[s] = layout_of(images, false);
    pass.args.side[s] = side_of(images, pass.layout[s]);
    pass.args.reduce = pass.args.reduce || images.norms.data;
  }
  if (pass.layout[0].images + pass.layout[1].images == 0) {  // no task would write the losses, which are zero
    const auto bytes = static_cast<size_t>(2 * item_size(losses.dtype));
    check(cudaMemsetAsync(losses.data, 0, bytes, static_cast<cudaStream_t>(stream)), "attack_step");
    return;
  }
  set_perturbation(pass.args, perturbation);
  pass.args.reduce = pass.args.reduce || perturbation.norm == Norm::l2;
  pass.args.attack = true;
  if (workspace.data) {
    Vector table = vector_of(workspace);
    SideArgs* side = pass.args.side;
    side[0].coefficient = side[1].coefficient = table;
    side[1].coefficient.data += pass.layout[0].images * item_size(table.dtype);
    launch_loss("attack_step", logits, losses, side[0].coefficient, side[1].coefficient, device, stream);
  } else {
    pass.args.logits = logits_of(logits, losses);
  }
  run_kernel(pass, wide(logits));
}

}  // namespace dat::cuda
