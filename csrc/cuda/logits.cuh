// From two vectors of logits to attack losses and coefficients. The terms are computed in T, sums of them in double:
// then a batch of equal logits is exactly as far from its mean as it should be, not at all.
#pragma once

#include "../formulas.h"
#include "block.cuh"
#include "element.cuh"

namespace dat::cuda {

struct LogitsArgs {
  Vector logits[2], targets[2];  // [side]
  Objective objective = Objective::vanilla;
  Formulation formulation = Formulation::eq10;
  Vector losses;  // [2]
};

template <class T>
struct Target {
  T target = 0, own_mean = 0;
  bool exists = false;  // a side with nothing to compare itself with has no attack: loss and coefficients are zero
};

// Called by the whole block; each block finds the same bits.
template <class T>
__device__ Target<T> find_target(const LogitsArgs& args, Side side) {
  const Vector& own = args.targets[static_cast<int>(side)];
  const Vector& other = args.targets[static_cast<int>(opposite(side))];
  Target<T> result;
  result.exists = own.count > 0 && other.count > 0;
  if (!result.exists) return result;
  double sum = 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < other.count; i += blockDim.x)
    sum += target_term(args.objective, args.formulation, side, read<T>(other, i));
  const T mean = static_cast<T>(block_sum(sum, kTargetSum) / static_cast<double>(other.count));
  result.target = target_of_mean(args.objective, args.formulation, side, mean);
  if (args.formulation == Formulation::batch_mean) {
    sum = 0;
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < own.count; i += blockDim.x) sum += read<T>(own, i);
    result.own_mean = static_cast<T>(block_sum(sum, kOwnSum) / static_cast<double>(own.count));
  }
  return result;
}

template <class T>
__device__ AttackTerm<T> term_of(const LogitsArgs& args, Side side, const Target<T>& target, T logit) {
  if (!target.exists) return {T(0), T(0)};
  return attack_term(args.objective, args.formulation, side, logit, target.target, target.own_mean,
                     args.targets[static_cast<int>(side)].count);
}

// Called by the whole block. Not inlined: one block in hundreds comes here.
template <class T>
__device__ __noinline__ void write_loss(const LogitsArgs& args, Side side, Target<T> target) {
  const Vector& logits = args.logits[static_cast<int>(side)];
  double sum = 0;
  if (args.formulation == Formulation::batch_mean)
    sum = threadIdx.x == 0 && logits.count ? term_of(args, side, target, T(0)).loss : T(0);
  else
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < logits.count; i += blockDim.x)
      sum += term_of(args, side, target, read<T>(logits, i)).loss;
  sum = block_sum(sum, kLossSum);
  if (threadIdx.x == 0) write(args.losses, static_cast<int>(side), sum);
}

// One side's loss and coefficients; called by the whole block.
template <class T>
__device__ void attack_side(const LogitsArgs& args, Side side, const Vector& coefficient) {
  const Target<T> target = find_target<T>(args, side);
  write_loss(args, side, target);
  const Vector& logits = args.logits[static_cast<int>(side)];
  for (int64_t i = threadIdx.x; i < logits.count; i += blockDim.x)
    write(coefficient, i, term_of(args, side, target, read<T>(logits, i)).coefficient);
}

struct LossArgs {
  LogitsArgs logits;
  Vector coefficient[2];
};

// Two blocks, one for each side.
template <class T>
__global__ void __launch_bounds__(kLossThreads) loss_kernel(const __grid_constant__ LossArgs args) {
  attack_side<T>(args.logits, blockIdx.x == 0 ? Side::real : Side::fake, args.coefficient[blockIdx.x]);
}

struct TermsArgs {
  LogitsArgs logits;      // losses: the last two of sums
  Vector coefficient[2];  // absent where no attack is wanted
  Vector weight[2], sums;
  double factor[2] = {}, floor[2] = {};  // of the side's weights: for each slope, and the least magnitude
};

// One side's weights, and its part of the sums; called by the whole block.
template <class T>
__device__ void add_objective(const TermsArgs& args, Side side, double& loss, double& wasserstein) {
  const int s = static_cast<int>(side);
  const Vector& logits = args.logits.logits[s];
  if (logits.count == 0) return;
  double score = 0, sum = 0;
  for (int64_t i = threadIdx.x; i < logits.count; i += blockDim.x) {
    const T t = read<T>(logits, i);
    score += g(args.logits.objective, side, t);
    sum += t;
    write(args.weight[s], i, objective_weight(args.logits.objective, side, t, T(args.factor[s]), T(args.floor[s])));
  }
  // The room of the target's sums, which all threads have read: since then they have met at the loss's.
  const double count = static_cast<double>(logits.count);
  loss -= block_sum(score, kTargetSum) / count;
  wasserstein += (side == Side::real ? 1 : -1) * block_sum(sum, kOwnSum) / count;
}

// One block: the sides add up.
template <class T>
__global__ void __launch_bounds__(kLossThreads) terms_kernel(const __grid_constant__ TermsArgs args) {
  double loss = 0, wasserstein = 0;
#pragma unroll 1
  for (int s = 0; s < 2; ++s) {
    const Side side = static_cast<Side>(s);
    if (args.coefficient[s].data)
      attack_side<T>(args.logits, side, args.coefficient[s]);
    else if (threadIdx.x == 0)
      write(args.logits.losses, s, 0.0);
    add_objective<T>(args, side, loss, wasserstein);
    finish_sums(1);  // of a side without logits the loss's is the last, and the next side's may be the next
  }
  if (threadIdx.x == 0) write(args.sums, 0, loss), write(args.sums, 1, wasserstein);
}

}  // namespace dat::cuda
