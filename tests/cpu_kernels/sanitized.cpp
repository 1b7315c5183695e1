// Every operation of the CPU kernels as a program of its own, for the sanitizers: odd shapes, strides and dtypes in
// buffers exactly as large as they must be. What lies between elements is looked at too, and results are compared.
//
// Its threads are the standard library's, behind the names that csrc/cpu/parallel.h looks for: ThreadSanitizer knows
// nothing of how GNU's OpenMP runtime joins its own, and calls that a race.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "../../csrc/attack.h"
#include "../../csrc/cpu/rows.h"
#include "../../csrc/sample.h"

using namespace dat;

namespace {

constexpr int kThreads = 3;
thread_local int thread_number = 0, thread_count = 1;

}  // namespace

extern "C" {
int omp_get_max_threads() { return kThreads; }
int omp_get_num_threads() { return thread_count; }
int omp_get_thread_num() { return thread_number; }
int omp_in_parallel() { return thread_count > 1; }
void GOMP_parallel(void (*run)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> team;
  for (unsigned t = 0; t < threads; ++t)
    team.emplace_back([=] {
      thread_number = static_cast<int>(t), thread_count = static_cast<int>(threads);
      run(data);
    });
  for (std::thread& thread : team) thread.join();
}
}

namespace {

bool failed = false;

void expect(bool right, const char* what) {
  if (!right && !failed) std::printf("%s is wrong\n", what);
  failed |= !right;
}

using Numbers = std::vector<int64_t>;
constexpr DType kEvery[] = {DType::float64, DType::float32, DType::float16, DType::bfloat16};
constexpr char kGap = 0x5a;  // what stands where nothing may be written

// A tensor in memory of its own, from its first element to its last.
class Array {
 public:
  Array(DType dtype, Numbers shape, Numbers strides, double seed = 0) : size_(item_size(dtype)) {
    int64_t last = 0;
    for (size_t d = 0; d < shape.size(); ++d) last += (shape[d] - 1) * strides[d];
    tensor = {nullptr, dtype, std::move(shape), std::move(strides)};
    bytes_ = tensor.numel() ? (last + 1) * size_ : 0;
    memory_.reset(new char[bytes_]);
    std::memset(memory_.get(), kGap, bytes_);
    tensor.data = memory_.get();
    if (!seed) return;
    const int64_t numel = tensor.numel();
    for (int64_t i = 0; i < numel; ++i) set(i, 1.9 * std::sin(seed + 0.7 * static_cast<double>(i)));
  }

  // Of the element that is the i-th in the order of the shape.
  double operator[](int64_t i) const {
    const char* at = memory_.get() + offset(i);
    double f64;
    float f32;
    uint16_t raw;
    switch (tensor.dtype) {
      case DType::float64: return std::memcpy(&f64, at, 8), f64;
      case DType::float32: return std::memcpy(&f32, at, 4), f32;
      case DType::float16: std::memcpy(&raw, at, 2); return half(raw);
      case DType::bfloat16: break;
    }
    std::memcpy(&raw, at, 2);
    const uint32_t bits = uint32_t{raw} << 16;
    return std::memcpy(&f32, &bits, 4), f32;
  }

  void set(int64_t i, double value) {
    char* at = memory_.get() + offset(i);
    const float f32 = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &f32, 4);
    uint16_t raw = static_cast<uint16_t>(bits >> 16);  // cut off, which is a number of bfloat16 all the same
    if (tensor.dtype == DType::float16) raw = half_of(value);
    if (tensor.dtype == DType::float64) std::memcpy(at, &value, 8);
    if (tensor.dtype == DType::float32) std::memcpy(at, &f32, 4);
    if (size_ == 2) std::memcpy(at, &raw, 2);
  }

  void expect_gaps() const {
    std::vector<bool> element(bytes_);
    for (int64_t i = 0; i < tensor.numel(); ++i)
      for (int64_t b = 0; b < size_; ++b) element[offset(i) + b] = true;
    for (int64_t b = 0; b < bytes_; ++b) expect(element[b] || memory_[b] == kGap, "a byte between two elements");
  }

  double tolerance() const { return size_ == 8 ? 1e-12 : size_ == 4 ? 1e-5 : 2e-2; }

  Tensor tensor;

 private:
  static double half(uint16_t raw) {
    const int exponent = raw >> 10 & 31;
    const double size = exponent ? std::ldexp(1024 + (raw & 1023), exponent - 25) : std::ldexp(raw & 1023, -24);
    return raw & 0x8000 ? -size : size;
  }
  static uint16_t half_of(double value) {  // cut off; of numbers from -2 to 2
    int exponent;
    const double mantissa = std::frexp(std::fabs(value), &exponent);
    const uint16_t sign = value < 0 ? 0x8000 : 0;
    if (exponent < -13) return sign;
    return static_cast<uint16_t>(sign | (exponent + 14) << 10 | static_cast<int>(mantissa * 2048 - 1024));
  }

  int64_t offset(int64_t i) const {
    int64_t at = 0;
    for (size_t d = tensor.shape.size(); d-- > 0; i /= tensor.shape[d]) at += i % tensor.shape[d] * tensor.strides[d];
    return at * size_;
  }

  int64_t size_, bytes_ = 0;
  std::unique_ptr<char[]> memory_;
};

// Strides of [m, c, h, w]
enum class Memory { contiguous, channels_last, padded, gaps, transposed };
constexpr Memory kMemories[] = {Memory::contiguous, Memory::channels_last, Memory::padded, Memory::gaps,
                                Memory::transposed};

Numbers strides_of(const Numbers& s, Memory memory) {
  const int64_t numel = s[1] * s[2] * s[3];
  switch (memory) {
    case Memory::contiguous: return {numel, s[2] * s[3], s[3], 1};
    case Memory::channels_last: return {numel, 1, s[3] * s[1], s[1]};
    case Memory::padded: return {numel + 5, s[2] * s[3], s[3], 1};
    case Memory::gaps: return {numel * 3 + 1, s[2] * s[3] * 3, s[3] * 3, 3};
    case Memory::transposed: return {numel, s[2] * s[3], 1, s[2]};
  }
  return {};
}

double moved(double x, double v, double coefficient, double norm, const Perturbation& how) {
  const double g = coefficient * v, length = std::fabs(coefficient) * norm;
  double along = g;
  if (how.norm == Norm::l2) along = length > 0 ? g / length : 0;
  if (how.norm == Norm::linf) along = (g > 0) - (g < 0);
  if (how.norm == Norm::clamp) along = std::fmin(std::fmax(g, -1), 1);
  return std::fmin(std::fmax(x - how.eps * along, how.clip_min), how.clip_max);
}

struct Side {
  Side(const Numbers& shape, DType x_dtype, DType v_dtype, Memory x_memory, Memory v_memory, bool more, bool weighted)
      : x(x_dtype, shape, strides_of(shape, x_memory), 1), v(v_dtype, shape, strides_of(shape, v_memory), 2),
        adv(x_dtype, shape, strides_of(shape, x_memory)), grad(v_dtype, shape, strides_of(shape, v_memory)),
        norms(DType::float32, {shape[0]}, {2}), weight(DType::float32, {shape[0]}, {3}, 4),
        images{x.tensor, v.tensor, adv.tensor, {}, {}, {}} {
    if (more) images.grad = grad.tensor, images.norms = norms.tensor;
    if (weighted) images.weight = weight.tensor;
  }

  // coefficients: of the attack, for every image
  void expect_moved(const std::function<double(int64_t)>& coefficient, const Perturbation& how) const {
    const int64_t m = x.tensor.shape[0], numel = m ? x.tensor.numel() / m : 0;
    const int64_t every = numel > 1'000'000 ? 1009 : 1;  // of the elements; sanitizers make this slow
    for (int64_t i = 0; i < m; ++i) {
      double squares = 0;
      for (int64_t k = 0; k < numel && every == 1; ++k) squares += v[i * numel + k] * v[i * numel + k];
      const double by = images.weight.data ? weight[i] : 1, c = coefficient(i) / by, norm = std::sqrt(squares);
      for (int64_t k = 0; k < numel; k += every) {
        const int64_t at = i * numel + k;
        const double right = moved(x[at], v[at], c, norm, how);
        expect(std::fabs(adv[at] - right) <= adv.tolerance() * (1 + std::fabs(right)) + v.tolerance() * 1e-3, "adv");
        if (images.grad.data)
          expect(std::fabs(grad[at] - c * v[at]) <= grad.tolerance() * (1 + std::fabs(c * v[at])), "grad");
      }
      if (images.norms.data) expect(std::fabs(norms[i] - norm / std::fabs(by)) <= 1e-5 * norms[i], "a norm");
    }
    for (const Array* array : {&adv, &grad, &norms})
      if (every == 1) array->expect_gaps();
  }

  Array x, v, adv, grad, norms, weight;
  Images images;
};

void run_perturb(const Numbers& shape, DType x_dtype, DType v_dtype, Memory x_memory, Memory v_memory, Norm norm) {
  const Side side(shape, x_dtype, v_dtype, x_memory, v_memory, false, false);
  const Perturbation how{0.5, norm, -0.9, 1.1};
  cpu::perturb(side.images, how);
  side.expect_moved([](int64_t) { return 1.0; }, how);
}

// Wasserstein's attack of Equation 10, whose coefficients are signs.
void run_step(const Numbers& shape, int64_t n, DType x_dtype, DType v_dtype, Memory x_memory, Memory v_memory,
              Norm norm, bool more, bool weighted) {
  Numbers fakes = shape;
  fakes[0] = n;
  const Side real(shape, x_dtype, v_dtype, x_memory, v_memory, more, weighted);
  const Side fake(fakes, x_dtype, v_dtype, x_memory, v_memory, !more, weighted);
  const Array r(DType::float32, {shape[0]}, {2}, 1), f(DType::float32, {n}, {3}, 2), losses(DType::float32, {2}, {2});
  const Perturbation how{0.5, norm};
  cpu::attack_step({r.tensor, f.tensor, r.tensor, f.tensor, Objective::wasserstein, Formulation::eq10}, real.images,
                   fake.images, how, losses.tensor);
  const auto against = [](const Array& own, const Array& other) {
    const int64_t count = other.tensor.numel();
    double mean = 0;
    for (int64_t i = 0; i < count; ++i) mean += other[i] / static_cast<double>(count);
    return [&own, count, mean](int64_t i) { return count ? (own[i] > mean) - (own[i] < mean) : 0.0; };
  };
  real.expect_moved(against(r, f), how);
  const auto of_fake = against(f, r);
  fake.expect_moved([&](int64_t i) { return of_fake(i); }, how);
  losses.expect_gaps();
}

// Least squares' loss; of the other objectives only where they read and write.
void run_logits(int64_t m, int64_t n, DType dtype, Objective objective, Formulation formulation, bool attack) {
  const DType sums_dtype = dtype == DType::float64 ? DType::float64 : DType::float32;
  const Array r(dtype, {m}, {2}, 1), f(dtype, {n}, {3}, 2), weight_r(dtype, {m}, {3}), weight_f(dtype, {n}, {1});
  const Array sums(sums_dtype, {4}, {2}), c_r(sums_dtype, {m}, {2}), c_f(sums_dtype, {n}, {1});
  const Logits logits{r.tensor, f.tensor, r.tensor, f.tensor, objective, formulation};
  const Array losses(sums_dtype, {2}, {3});
  cpu::attack_loss(logits, losses.tensor, c_r.tensor, c_f.tensor);
  cpu::logit_terms(
      logits, {0.5, 1e-20},
      {weight_r.tensor, weight_f.tensor, sums.tensor, attack ? c_r.tensor : Tensor{}, attack ? c_f.tensor : Tensor{}});
  for (const Array* array : {&weight_r, &weight_f, &sums, &c_r, &c_f, &losses}) array->expect_gaps();
  if (objective != Objective::least_squares) return;
  double loss = 0;
  for (int64_t i = 0; i < m; ++i) loss += std::pow(r[i] - 1, 2) / static_cast<double>(m);
  for (int64_t i = 0; i < n; ++i) loss += std::pow(f[i], 2) / static_cast<double>(n);
  expect(std::fabs(sums[0] - loss) <= sums.tolerance() * (1 + loss), "a loss");
}

void run_sample(const Numbers& image, int64_t batch, DType dtype, Memory from, Memory to, bool mirror) {
  constexpr int64_t kImages = 3, kStride = 2;
  const int64_t c = image[0], h = image[1], w = image[2], numel = c * h * w;
  const Numbers shape{kImages, c, h, w}, strides = strides_of(shape, from), drawn{batch, c, h, w};
  const int64_t last = 2 * strides[0] + (c - 1) * strides[1] + (h - 1) * strides[2] + (w - 1) * strides[3];
  const std::unique_ptr<uint8_t[]> images(new uint8_t[last + 1]);
  for (int64_t i = 0; i <= last; ++i) images[i] = static_cast<uint8_t>(i * 7);
  const int64_t count = batch ? (batch - 1) * kStride + 1 : 0;
  const std::unique_ptr<int64_t[]> index(new int64_t[count]);
  const std::unique_ptr<bool[]> mirrored(new bool[count]);
  for (int64_t i = 0; i < count; ++i) index[i] = i % kImages, mirrored[i] = i % 4 == 0;
  const Array out(dtype, drawn, strides_of(drawn, to));
  Samples samples{images.get(), shape,     strides, index.get(), kStride, mirror ? mirrored.get() : nullptr,
                  kStride,      out.tensor};
  cpu::sample_images(samples);
  out.expect_gaps();
  for (int64_t i = 0; i < batch * numel; ++i) {
    const int64_t b = i / numel, column = i % w, row = i / w % h, channel = i / (w * h) % c;
    const int64_t place = mirror && mirrored[b * kStride] ? w - 1 - column : column;
    const uint8_t byte =
        images[index[b * kStride] * strides[0] + channel * strides[1] + row * strides[2] + place * strides[3]];
    expect(std::fabs(out[i] - (byte / 127.5 - 1)) <= std::fmax(out.tolerance() / 2, 1e-6), "a pixel");  // a float
  }
  if (!batch) return;
  for (const int64_t wrong : {int64_t{-1}, kImages, std::numeric_limits<int64_t>::max()}) {
    index[count - 1] = wrong;
    try {
      cpu::sample_images(samples);
      expect(false, "an index");
    } catch (const std::out_of_range&) {
    }
  }
}

}  // namespace

int main() {
  const Norm norms[] = {Norm::none, Norm::l2, Norm::linf, Norm::clamp};
  // Two threads that are the first to ask what the processor has
  std::thread other([] { cpu::rows_for<float>(); });
  cpu::rows_for<double>();
  other.join();

  for (const Norm norm : norms)  // about the registers', the chunks' and the threads' shares
    for (const int64_t numel : {1, 15, 17, 33, 1023, 1025, 16 * 1024 + 3})
      for (const DType dtype : kEvery)
        run_perturb({3, 1, 1, numel}, dtype, dtype, Memory::contiguous, Memory::contiguous, norm);
  for (const DType x : kEvery)
    for (const DType v : kEvery)
      for (const Memory in : kMemories) {
        run_perturb({2, 3, 5, 7}, x, v, in, Memory::contiguous, Norm::l2);
        run_step({3, 3, 5, 7}, 2, x, v, Memory::contiguous, in, Norm::l2, true, in == Memory::gaps);
      }
  for (const Norm norm : norms)
    for (const Memory memory : kMemories) {
      run_perturb({5, 3, 37, 41}, DType::float32, DType::bfloat16, memory, memory, norm);
      run_step({5, 3, 37, 41}, 7, DType::float32, DType::float32, memory, memory, norm, false, true);
    }
  run_step({2, 3, 80, 77}, 1, DType::float32, DType::float16, Memory::padded, Memory::channels_last, Norm::l2, true,
           false);
  run_step({0, 3, 5, 7}, 2, DType::float32, DType::float32, Memory::contiguous, Memory::contiguous, Norm::l2, true,
           false);
  run_perturb({3, 0, 5, 7}, DType::float32, DType::float32, Memory::contiguous, Memory::contiguous, Norm::l2);
  // So large that it is written past the caches, from addresses that no register's width divides
  for (const DType dtype : {DType::float32, DType::bfloat16})
    run_perturb({3, 1, 1, (int64_t{32} << 20) / (3 * item_size(dtype)) + 5}, dtype, dtype, Memory::padded,
                Memory::contiguous, Norm::clamp);

  for (const Objective objective :
       {Objective::vanilla, Objective::fgan, Objective::wasserstein, Objective::hinge, Objective::least_squares})
    for (const Formulation formulation : {Formulation::eq10, Formulation::alg1, Formulation::batch_mean})
      for (const DType dtype : kEvery)
        for (const int64_t m : {0, 1, 19, 70})
          run_logits(m, 33, dtype, objective, formulation, m != 1), run_logits(33, m, dtype, objective, formulation, 1);

  for (const DType dtype : kEvery)
    for (const Memory from : kMemories)
      for (const Memory to : kMemories)
        for (const bool mirror : {false, true}) run_sample({3, 11, 13}, 5, dtype, from, to, mirror);
  for (const Memory to : kMemories) run_sample({1, 2, 2051}, 9, DType::float32, Memory::contiguous, to, true);
  run_sample({1, 1, 1}, 4, DType::bfloat16, Memory::contiguous, Memory::contiguous, true);
  run_sample({3, 11, 13}, 0, DType::float32, Memory::contiguous, Memory::contiguous, true);

  std::printf("%s: %s\n", cpu::instruction_set(), failed ? "a result is wrong" : "all cases agree");
  return failed;
}
