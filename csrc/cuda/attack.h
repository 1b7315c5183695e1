// The operations on logits and images on CUDA tensors. Nothing here allocates, waits or reads device memory: all of it
// can be captured in a CUDA graph. The stream belongs to the device.
#pragma once

#include "../attack.h"

namespace dat::cuda {

// losses: [2]; coefficient_*: d loss / d logits, [m] and [n].
void attack_loss(const Logits& logits, const Tensor& losses, const Tensor& coefficient_real,
                 const Tensor& coefficient_fake, int device, void* stream);

// All that a discriminator's step wants of its logits, in one launch of one block.
void logit_terms(const Logits& logits, const Weighting& how, const TermOutputs& out, int device, void* stream);

// adv = clip(x - eps * n(v)), and ||v_i|| where norms are wanted
void perturb(const Images& images, const Perturbation& perturbation, int device, void* stream);

// Both at once, real and generated images in one launch. workspace: float64 [m + n], wanted where workspace_numel(m, n)
// is not 0 (a first launch then reduces the logits); absent, each block reduces them however many there are.
void attack_step(const Logits& logits, const Images& real, const Images& fake, const Perturbation& perturbation,
                 const Tensor& losses, const Tensor& workspace, int device, void* stream);

int64_t workspace_numel(int64_t real, int64_t fake);

}  // namespace dat::cuda
