// Moving images on the CPU: streamed once, in chunks that stay in the first-level cache.
#include <cmath>

#include "logits.h"
#include "parallel.h"

namespace dat::cpu {
namespace {

enum Operand { kX, kV, kAdv, kGrad };
constexpr int64_t kChunk = 1024;               // elements converted at a time where dtype or stride need it
constexpr int64_t kLarge = int64_t{32} << 20;  // bytes of an output that no cache keeps for the next reader
constexpr int64_t kUnit = 16 * kChunk;         // elements one thread takes at a time

// One side's images with everything decided; T is the type of the arithmetic.
template <class T>
class ImagePass {
 public:
  ImagePass(const Images& images, const std::vector<double>& coefficient, const Perturbation& perturbation)
      : images_(images), coefficient_(coefficient), perturbation_(perturbation),
        operands_{&images.x, &images.v, &images.adv, &images.grad}, layout_(make_layout(operands_, kAdv)) {
    if (images.weight.data) weight_ = read<double>(images.weight);
    for (size_t i = 0; i < weight_.size(); ++i) coefficient_[i] = unweighted(coefficient_[i], weight_[i]);
  }

  void run() {
    std::vector<double> norms(needs_norm_ ? layout_.images : 0);
    const bool several_units = units_per_image_ > 1;
    if (needs_norm_ && several_units) measure(norms);
    parallel_for(units_, work_, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        const int64_t image = u / units_per_image_;
        if (needs_norm_ && !several_units)
          norms[image] = std::sqrt(sum_of_squares(u));  // moved while it is in the cache
        move(u, needs_norm_ ? norms[image] : 0.0);
      }
    });
    if (!images_.norms.data) return;
    for (size_t i = 0; i < weight_.size(); ++i) norms[i] = unweighted_norm(norms[i], weight_[i]);
    write(norms, images_.norms);
  }

 private:
  // Of images of several units: all of an image's are needed before any of them can move.
  void measure(std::vector<double>& norms) const {
    std::vector<double> squares(units_);
    parallel_for(units_, work_, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) squares[u] = sum_of_squares(u);
    });
    for (int64_t u = 0; u < units_; ++u) norms[u / units_per_image_] += squares[u];
    for (double& norm : norms) norm = std::sqrt(norm);
  }

  // Calls body(address of each operand's first element, elements) for every row of the unit.
  template <class Body>
  void for_rows(int64_t unit, const Body& body) const {
    const int64_t longest_row = in_place_ ? kUnit : kChunk;
    const int64_t image = unit / units_per_image_, begin = unit % units_per_image_ * kUnit;
    const int64_t end = std::min(begin + kUnit, layout_.numel);
    const int64_t row = layout_.dims ? layout_.size[0] : 1;
    for (int64_t at = begin; at < end;) {
      const int64_t n = std::min({end - at, row - at % row, longest_row});
      std::array<char*, kOperands> address{};
      for (int k = 0; k < kOperands; ++k) {
        if (!operands_[k]->data) continue;
        int64_t offset = image * layout_.image_stride[k], rest = at;
        for (int d = 0; d < layout_.dims; ++d) {
          offset += rest % layout_.size[d] * layout_.stride[k][d];
          rest /= layout_.size[d];
        }
        address[k] = operands_[k]->data + offset * item_size(operands_[k]->dtype);
      }
      body(address, n);
      at += n;
    }
  }

  bool direct(int k) const {  // readable and writable in place
    return operands_[k]->dtype == (sizeof(T) == 8 ? DType::float64 : DType::float32) && step(k) == 1;
  }
  int64_t step(int k) const { return layout_.dims ? layout_.stride[k][0] : 1; }

  const T* load(int k, char* address, int64_t n, T* buffer) const {
    if (direct(k)) return reinterpret_cast<const T*>(address);
    rows_.load(operands_[k]->dtype, address, step(k), n, buffer);
    return buffer;
  }
  void store(int k, const T* values, int64_t n, char* address) const {
    if (!direct(k)) rows_.store(operands_[k]->dtype, values, n, address, step(k));
  }

  double sum_of_squares(int64_t unit) const {
    alignas(64) T buffer[kChunk];
    double sum = 0;
    for_rows(unit, [&](const auto& address, int64_t n) {
      for (int64_t i = 0; i < n; i += kChunk) {
        const int64_t part = std::min(n - i, kChunk);
        sum +=
            rows_.sum_of_squares(load(kV, address[kV] + i * step(kV) * item_size(images_.v.dtype), part, buffer), part);
      }
    });
    return sum;
  }

  void move(int64_t unit, double norm) const {
    alignas(64) T x_buffer[kChunk], v_buffer[kChunk], out_buffer[kChunk];
    const double coefficient = coefficient_.empty() ? 1.0 : coefficient_[unit / units_per_image_];
    Move<T> how;
    how.step = step_size<T>(perturbation_.norm, T(perturbation_.eps), T(coefficient), T(norm));
    how.low = T(perturbation_.clip_min), how.high = T(perturbation_.clip_max);
    how.norm = perturbation_.norm, how.coefficient = T(coefficient);
    how.streaming = layout_.images * layout_.numel * item_size(images_.adv.dtype) >= kLarge;
    if (in_place_) {
      for_rows(unit, [&](const auto& address, int64_t n) {
        rows_.move(images_.x.dtype, address[kX], address[kV], n, how, address[kAdv]);
      });
      return;
    }
    how.streaming = how.streaming && direct(kAdv);
    for_rows(unit, [&](const auto& address, int64_t n) {
      const T* x = load(kX, address[kX], n, x_buffer);
      const T* v = load(kV, address[kV], n, v_buffer);
      T* out = direct(kAdv) ? reinterpret_cast<T*>(address[kAdv]) : out_buffer;
      rows_.move(sizeof(T) == 8 ? DType::float64 : DType::float32, x, v, n, how, out);
      store(kAdv, out, n, address[kAdv]);
      if (!images_.grad.data) return;
      out = direct(kGrad) ? reinterpret_cast<T*>(address[kGrad]) : out_buffer;
      rows_.scale(v, n, T(coefficient), out);
      store(kGrad, out, n, address[kGrad]);
    });
  }

  const Images& images_;
  std::vector<double> coefficient_, weight_;
  const Perturbation& perturbation_;
  std::array<const Tensor*, kOperands> operands_;
  Layout layout_;
  const int64_t units_per_image_ = (layout_.numel + kUnit - 1) / kUnit;
  const int64_t units_ = layout_.images * units_per_image_, work_ = layout_.images * layout_.numel;
  const bool needs_norm_ = perturbation_.norm == Norm::l2 || images_.norms.data;
  const Rows<T>& rows_ = rows_for<T>();
  // x, v and adv are of one dtype and dense, and nothing else is written: no buffers are needed
  const bool in_place_ =
      images_.v.dtype == images_.x.dtype && !images_.grad.data && step(kX) == 1 && step(kV) == 1 && step(kAdv) == 1;
};

void pass(const Images& images, const std::vector<double>& coefficient, const Perturbation& perturbation) {
  if (images.x.dtype == DType::float64 || images.v.dtype == DType::float64)
    ImagePass<double>(images, coefficient, perturbation).run();
  else
    ImagePass<float>(images, coefficient, perturbation).run();
}

}  // namespace

void perturb(const Images& images, const Perturbation& perturbation) { pass(images, {}, perturbation); }

void attack_step(const Logits& logits, const Images& real, const Images& fake, const Perturbation& perturbation,
                 const Tensor& losses) {
  const auto [real_terms, fake_terms] = attack_terms(logits, losses.dtype);
  write({real_terms.loss, fake_terms.loss}, losses);
  pass(real, real_terms.coefficient, perturbation);
  pass(fake, fake_terms.coefficient, perturbation);
}

}  // namespace dat::cpu
