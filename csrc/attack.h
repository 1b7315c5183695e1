// The operations on logits and on what moves images, and their arguments, the same for every native backend.
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

// How the objective's slopes become the weights with which logits go backward.
struct Weighting {
  double weight;  // of the loss -(mean g1(r) + mean g2(f))
  double floor;   // over the side's number of logits: the least magnitude of a weight; 0: none
};

struct TermOutputs {
  Tensor weight_real, weight_fake;            // [m], [n]: weight * d loss / d logits
  Tensor sums;                                // [4]: the loss, mean r - mean f, the attack losses real and fake
  Tensor coefficient_real, coefficient_fake;  // optional: d attack loss / d logits; without them these losses are 0
};

struct Perturbation {
  double eps;
  Norm norm;
  double clip_min = -std::numeric_limits<double>::infinity(), clip_max = std::numeric_limits<double>::infinity();
};

// One side's images. v is the gradient handed in; where weight is present, v_i = weight_i * d D(x_i) / d x_i.
struct Images {
  Tensor x, v, adv;            // [m, ...]
  Tensor grad, norms, weight;  // optional outputs: coefficient * v; ||v_i / weight_i||; optional input [m]
};

namespace cpu {

// losses: [2]; coefficient_*: d loss / d logits, [m] and [n].
void attack_loss(const Logits& logits, const Tensor& losses, const Tensor& coefficient_real,
                 const Tensor& coefficient_fake);

// All that a discriminator's step wants of its logits. A side without logits adds nothing to the sums.
void logit_terms(const Logits& logits, const Weighting& how, const TermOutputs& out);

// adv = clip(x - eps * n(v))
void perturb(const Images& images, const Perturbation& perturbation);

// Both at once, real and generated images in one pass.
void attack_step(const Logits& logits, const Images& real, const Images& fake, const Perturbation& perturbation,
                 const Tensor& losses);

}  // namespace cpu
}  // namespace dat
