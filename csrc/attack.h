// The three operations and their arguments, the same for every native backend.
#pragma once

#include <limits>

#include "formulas.h"
#include "tensor.h"

namespace dat {

struct Logits {
  Tensor real, fake;                // [m], [n], any strides
  Tensor target_real, target_fake;  // the logits whose means are the targets; under data parallelism everyone's
  Objective objective;
  Formulation formulation;
};

struct Perturbation {
  double eps;
  Norm norm;
  double clip_min = -std::numeric_limits<double>::infinity(), clip_max = std::numeric_limits<double>::infinity();
};

// One side's images. v is the gradient handed in; where weight is present, v_i = weight_i * d D(x_i) / d x_i.
struct Images {
  Tensor x, v, adv;            // [m, ...]
  Tensor grad, norms, weight;  // optional outputs: coefficient * v; ||v_i||; optional input [m]
};

namespace cpu {

// losses: [2]; coefficient_*: d loss / d logits, [m] and [n].
void attack_loss(const Logits& logits, Tensor& losses, Tensor& coefficient_real, Tensor& coefficient_fake);

// adv = clip(x - eps * n(v))
void perturb(const Images& images, const Perturbation& perturbation);

// Both at once, real and generated images in one pass.
void attack_step(const Logits& logits, const Images& real, const Images& fake, const Perturbation& perturbation,
                 Tensor& losses);

}  // namespace cpu
}  // namespace dat
