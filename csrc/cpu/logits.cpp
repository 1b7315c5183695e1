// What the logits alone decide, on the CPU: attack losses, coefficients, the objective's weights. Sums are in double.
#include "logits.h"

namespace dat::cpu {
namespace {

template <class T>
T mean(const std::vector<T>& values) {
  double sum = 0;
  for (T value : values) sum += value;
  return static_cast<T>(sum / static_cast<double>(values.size()));
}

// A side with nothing to compare itself with has no attack: loss and coefficients are zero.
// T is the losses' type, so that what is capped in it fits into it.
template <class T>
SideTerms side_terms(const Logits& options, Side side) {
  const bool real = side == Side::real;
  const std::vector<T> logits = read<T>(real ? options.real : options.fake);
  const std::vector<T> own = read<T>(real ? options.target_real : options.target_fake);
  std::vector<T> other = read<T>(real ? options.target_fake : options.target_real);
  SideTerms terms;
  terms.coefficient.assign(logits.size(), 0.0);
  if (logits.empty() || own.empty() || other.empty()) return terms;

  for (T& t : other) t = target_term(options.objective, options.formulation, side, t);
  const T target = target_of_mean(options.objective, options.formulation, side, mean(other));
  const T own_mean = mean(own);
  for (size_t i = 0; i < logits.size(); ++i) {
    const AttackTerm<T> term = attack_term(options.objective, options.formulation, side, logits[i], target, own_mean,
                                           static_cast<int64_t>(own.size()));
    terms.loss = options.formulation == Formulation::batch_mean ? term.loss : terms.loss + term.loss;
    terms.coefficient[i] = term.coefficient;
  }
  return terms;
}

struct ObjectiveSums {
  double loss = 0, wasserstein = 0;
};

// One side's weights, and its part of the sums.
template <class T>
void add_objective(const Tensor& logits, Objective objective, Side side, const Weighting& how, const Tensor& weights,
                   ObjectiveSums& sums) {
  const std::vector<T> t = read<T>(logits);
  if (t.empty()) return;
  const double count = static_cast<double>(t.size());
  const T factor = static_cast<T>(-how.weight / count), floor = static_cast<T>(how.floor / count);
  std::vector<double> weight(t.size());
  double score = 0, sum = 0;
  for (size_t i = 0; i < t.size(); ++i) {
    score += g(objective, side, t[i]);
    sum += t[i];
    weight[i] = objective_weight(objective, side, t[i], factor, floor);
  }
  write(weight, weights);
  sums.loss -= score / count;
  sums.wasserstein += (side == Side::real ? sum : -sum) / count;
}

template <class T>
ObjectiveSums objective_terms(const Logits& logits, const Weighting& how, const TermOutputs& out) {
  ObjectiveSums sums;
  add_objective<T>(logits.real, logits.objective, Side::real, how, out.weight_real, sums);
  add_objective<T>(logits.fake, logits.objective, Side::fake, how, out.weight_fake, sums);
  return sums;
}

}  // namespace

std::pair<SideTerms, SideTerms> attack_terms(const Logits& logits, DType dtype) {
  if (dtype == DType::float64) return {side_terms<double>(logits, Side::real), side_terms<double>(logits, Side::fake)};
  return {side_terms<float>(logits, Side::real), side_terms<float>(logits, Side::fake)};
}

void attack_loss(const Logits& logits, const Tensor& losses, const Tensor& coefficient_real,
                 const Tensor& coefficient_fake) {
  const auto [real, fake] = attack_terms(logits, losses.dtype);
  write({real.loss, fake.loss}, losses);
  write(real.coefficient, coefficient_real);
  write(fake.coefficient, coefficient_fake);
}

void logit_terms(const Logits& logits, const Weighting& how, const TermOutputs& out) {
  const ObjectiveSums sums = out.sums.dtype == DType::float64 ? objective_terms<double>(logits, how, out)
                                                              : objective_terms<float>(logits, how, out);
  double real_loss = 0, fake_loss = 0;
  if (out.coefficient_real.data) {
    const auto [real, fake] = attack_terms(logits, out.sums.dtype);
    real_loss = real.loss, fake_loss = fake.loss;
    write(real.coefficient, out.coefficient_real);
    write(fake.coefficient, out.coefficient_fake);
  }
  write({sums.loss, sums.wasserstein, real_loss, fake_loss}, out.sums);
}

}  // namespace dat::cpu
