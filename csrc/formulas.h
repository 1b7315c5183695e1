// The formulas of direct adversarial training, written once for the CPU and the CUDA kernels.
//
// Notation of the paper (Li, Xia, Li 2020): the discriminator maximises E[g1(r)] + E[g2(f)] over the logits r of real
// and f of generated images. Every function is stable for logits of any finite size.
#pragma once

#include <math.h>

#include <cstdint>

#ifdef __CUDACC__
#define DAT_HD __host__ __device__
#else
#define DAT_HD
#endif

// csrc/cpu/rows.cpp is compiled once per instruction set. Each has functions of its own: of equally named ones that
// were not inlined the linker would keep any, for older processors too.
#ifdef DAT_ISA
#define DAT_FORMULAS DAT_ISA
#else
#define DAT_FORMULAS formulas
#endif

namespace dat {

// Each with its public names in the same order, which Python reads from the extension.
enum class Objective : int { vanilla, fgan, wasserstein, hinge, least_squares };
inline constexpr const char* kObjectives[] = {"vanilla", "fgan", "wasserstein", "hinge", "least_squares"};
enum class Formulation : int { eq10, alg1, batch_mean };
inline constexpr const char* kFormulations[] = {"eq10", "alg1", "batch_mean"};
enum class Norm : int { none, l2, linf, clamp };
inline constexpr const char* kNorms[] = {"none", "l2", "linf", "clamp"};
enum class Side : int { real, fake };

inline namespace DAT_FORMULAS {

DAT_HD inline Side opposite(Side side) { return side == Side::real ? Side::fake : Side::real; }

template <class T>
DAT_HD T sign(T t) {
  return T(t > T(0)) - T(t < T(0));
}

template <class T>
DAT_HD T softplus(T t) {
  return (t > T(0) ? t : T(0)) + log1p(exp(-fabs(t)));
}

template <class T>
DAT_HD T sigmoid(T t) {
  const T e = exp(-fabs(t));
  return (t >= T(0) ? T(1) : e) / (T(1) + e);
}

// The f-GAN objective's exp(-t) stops growing here: sums over thousands of images then stay finite.
template <class T>
DAT_HD T exponent_cap() {
  return sizeof(T) == 8 ? T(700) : T(80);
}

// g1 for real, g2 for generated images.
template <class T>
DAT_HD T g(Objective objective, Side side, T t) {
  const bool real = side == Side::real;
  switch (objective) {
    case Objective::vanilla: return real ? -softplus(-t) : -softplus(t);
    case Objective::fgan: return real ? -exp(-t < exponent_cap<T>() ? -t : exponent_cap<T>()) : T(1) - t;
    case Objective::wasserstein: return real ? t : -t;
    case Objective::hinge: return real ? (t < T(1) ? t - T(1) : T(0)) : (t > T(-1) ? -t - T(1) : T(0));
    case Objective::least_squares: return real ? -(t - T(1)) * (t - T(1)) : -t * t;
  }
  return T(0);
}

template <class T>
DAT_HD T g_prime(Objective objective, Side side, T t) {
  const bool real = side == Side::real;
  switch (objective) {
    case Objective::vanilla: return real ? sigmoid(-t) : -sigmoid(t);
    case Objective::fgan: return real ? (-t <= exponent_cap<T>() ? exp(-t) : T(0)) : T(-1);
    case Objective::wasserstein: return real ? T(1) : T(-1);
    case Objective::hinge: return real ? T(t < T(1)) : -T(t > T(-1));
    case Objective::least_squares: return real ? T(-2) * (t - T(1)) : T(-2) * t;
  }
  return T(0);
}

// With what a logit goes backward: `factor` times g', at least `floor` in magnitude. A backward scales with its
// weights, so that an image's gradient keeps its relative precision where the objective has saturated and g' is 0 or
// next to it.
template <class T>
DAT_HD T objective_weight(Objective objective, Side side, T t, T factor, T floor) {
  const T weight = factor * g_prime(objective, side, t);
  if (fabs(weight) < floor) return weight < T(0) ? -floor : floor;
  return weight;
}

// The attack loss of one side compares each image's score with a target made of the other batch:
//   eq10        |g(t_i) - mean_j g(o_j)|               g of the image's own side        (Eq. 9, 10)
//   alg1        |h(t_i) - h(mean_j o_j)|               h is g of the opposite side      (Algorithm 1, lines 6-7)
//   batch_mean  |mean_i t_i - mean_j o_j|, one scalar  raw logits                       (the released code)

// What is averaged over the other batch's logits to make the target.
template <class T>
DAT_HD T target_term(Objective objective, Formulation formulation, Side side, T other) {
  return formulation == Formulation::eq10 ? g(objective, side, other) : other;
}

template <class T>
DAT_HD T target_of_mean(Objective objective, Formulation formulation, Side side, T mean) {
  return formulation == Formulation::alg1 ? g(objective, opposite(side), mean) : mean;
}

template <class T>
struct AttackTerm {
  T loss;         // this image's share of the sum; for batch_mean the whole batch's scalar
  T coefficient;  // d loss / d logit_i
};

// own_mean and own_count are those of the image's own batch (of all processes); only batch_mean needs them.
template <class T>
DAT_HD AttackTerm<T> attack_term(Objective objective, Formulation formulation, Side side, T logit, T target, T own_mean,
                                 int64_t own_count) {
  if (formulation == Formulation::batch_mean) {
    const T difference = own_mean - target;
    return {fabs(difference), sign(difference) / T(own_count)};
  }
  const Side score_side = formulation == Formulation::eq10 ? side : opposite(side);
  const T difference = g(objective, score_side, logit) - target;
  return {fabs(difference), sign(difference) * g_prime(objective, score_side, logit)};
}

// The coefficient for an input gradient that already carries a per-image weight: v_i = weight * dD/dx_i.
template <class T>
DAT_HD T unweighted(T coefficient, T weight) {
  return weight == T(0) ? T(0) : coefficient / weight;
}

// ||d D(x_i) / d x_i|| from ||v_i||; of a weight of 0 it is not known.
template <class T>
DAT_HD T unweighted_norm(T v_norm, T weight) {
  return weight == T(0) ? T(NAN) : v_norm / fabs(weight);
}

template <class T>
DAT_HD T clip(T value, T low, T high) {  // NaN passes through, as in torch.clamp
  return value < low ? low : value > high ? high : value;
}

// x_adv = clip(x - step * direction). The gradient is coefficient * v and its norm |coefficient| * v_norm, so that the
// image is read once.
template <class T>
DAT_HD T direction(Norm norm, T v, T coefficient) {
  if (norm == Norm::linf) return sign(v);
  return norm == Norm::clamp ? clip(coefficient * v, T(-1), T(1)) : v;
}

template <class T>
DAT_HD T step_size(Norm norm, T eps, T coefficient, T v_norm) {
  if (norm == Norm::linf) return eps * sign(coefficient);
  if (norm == Norm::clamp) return eps;
  T step = eps * coefficient;
  if (norm == Norm::l2) {
    const T length = fabs(coefficient) * v_norm;
    step /= length < T(1e-12) ? T(1e-12) : length;  // a NaN stays one
  }
  const T largest = sizeof(T) == 8 ? T(1e300) : T(3e38);  // keeps 0 * step from becoming NaN
  return step > largest ? largest : step < -largest ? -largest : step;
}

}  // namespace DAT_FORMULAS
}  // namespace dat
