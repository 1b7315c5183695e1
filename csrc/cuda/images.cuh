// The single pass over the images: x and v are read once, adv (and the gradient, if wanted) is written once.
//
// A block takes one task, a share of one image, and loads its first tile before anything else, so that reducing the
// logits costs no time of its own. Where the image's norm is needed, the rest of v is on its way into shared memory by
// then and waits there until the norm is known; what does not fit is read twice, the second time most likely from the
// second-level cache.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "logits.cuh"

namespace dat::cuda {

struct SideArgs {
  Operand x, v, adv, grad;
  Walk walk;
  Vector norms, weight, coefficient;  // coefficient: of the attack loss, where an earlier launch has found it
  int64_t tasks = 0, slices = 1, share = 0;
};

struct ImagesArgs {
  SideArgs side[2];
  LogitsArgs logits;
  double eps = 0, clip_min = 0, clip_max = 0;
  int64_t kept = 0;
  int cluster = 1;
  Norm norm = Norm::none;
  bool attack = false;  // the coefficient comes from logits; otherwise v is the gradient itself
  bool reduce = false;  // the images' norms are needed
};

template <class A>
class Share {  // this thread's part of a task
 public:
  using T = typename A::Real;
  static constexpr int kDepth = A::kDepth, kSlot = A::kSlot;

  __device__ Share(const SideArgs& side, int64_t image, int64_t slice)
      : side_(side), shift_(shift_of(side, image)), x_(side.x, side.walk, image, kSlot, shift_),
        v_(side.v, side.walk, image, kSlot, shift_), image_(image), begin_(slice * side.share) {
    const int64_t slots = (side.walk.numel + shift_ + kSlot - 1) / kSlot;
    end_ = begin_ + side.share < slots ? begin_ + side.share : slots;
  }

  __device__ int64_t first() const { return begin_ + threadIdx.x; }
  __device__ int64_t end() const { return end_; }
  __device__ static int64_t tile() { return int64_t{blockDim.x} * kDepth; }  // slots, of which a thread has kDepth

  __device__ void load_x(int64_t j, typename A::XSlot (&x)[kDepth]) const { load(x_, side_.x.dtype, j, x); }
  __device__ void load_v(int64_t j, typename A::VSlot (&v)[kDepth]) const { load(v_, side_.v.dtype, j, v); }

  // Into shared memory, for this thread to take once arrived() has returned. From sm_80 on whole slots go there past
  // the registers, so that all of them are in flight at once; the header makes it a plain copy below that.
  __device__ void keep_v(int64_t j, typename A::VSlot* kept) const {
    if constexpr (A::kReach == Reach::whole) {
      static_assert(sizeof(typename A::VSlot) == 16, "the width of an asynchronous copy past the first-level cache");
#pragma unroll
      for (int d = 0; d < kDepth; ++d, j += blockDim.x, kept += blockDim.x) {
        if (j < end_)
          __pipeline_memcpy_async(kept, v_.template address<typename A::VSlot>(j), 16);
        else
          *kept = {};
      }
    } else {
      typename A::VSlot v[kDepth];
      load_v(j, v);
#pragma unroll
      for (int d = 0; d < kDepth; ++d) kept[d * blockDim.x] = v[d];
    }
  }
  __device__ static void arrived() {
    __pipeline_commit();
    __pipeline_wait_prior(0);
  }

  // Of a slot in T where that holds the squares (tiny weights make tiny gradients); the sum over slots is kept in
  // double.
  __device__ static double sum_of_squares(const typename A::VSlot (&v)[kDepth]) {
    double sum = 0;
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const T squares = squares_in<T>(v[d]);
      sum += squares > T(1e-30) && squares < T(1e37) ? static_cast<double>(squares) : squares_in<double>(v[d]);
    }
    return sum;
  }

  __device__ void move(int64_t j, const typename A::XSlot (&x)[kDepth], const typename A::VSlot (&v)[kDepth], T step,
                       bool use_sign, T low, T high, T coefficient) const {
    // Made here and not at the beginning: while the logits are reduced, registers are short.
    const Row<A::kReach> adv(side_.adv, side_.walk, image_, kSlot, shift_);
    const Row<A::kReach> grad(side_.grad, side_.walk, image_, kSlot, shift_);
#pragma unroll
    for (int d = 0; d < kDepth; ++d, j += blockDim.x) {
      if (j >= end_) return;
      T out[kSlot];
      for (int k = 0; k < kSlot; ++k) {
        const T direction = T(widen(v[d].get(k)));
        out[k] = clip(T(widen(x[d].get(k))) - step * (use_sign ? sign(direction) : direction), low, high);
      }
      A::template store<typename A::XSlot>(adv, side_.adv.dtype, j, out);
      if (!side_.grad.data) continue;
      for (int k = 0; k < kSlot; ++k) out[k] = coefficient * T(widen(v[d].get(k)));
      A::template store<typename A::VSlot>(grad, side_.grad.dtype, j, out);
    }
  }

 private:
  template <class R>
  __device__ static R squares_in(const typename A::VSlot& slot) {
    R sum = 0;
    for (int k = 0; k < kSlot; ++k) sum += R(widen(slot.get(k))) * R(widen(slot.get(k)));
    return sum;
  }

  template <class S>
  __device__ void load(const Row<A::kReach>& row, DType dtype, int64_t j, S (&slots)[kDepth]) const {
#pragma unroll
    for (int d = 0; d < kDepth; ++d, j += blockDim.x) {
      slots[d] = {};
      if (j < end_) A::load(row, dtype, j, slots[d]);
    }
  }

  // Elements of the image's first slot that lie before the image, so that adv's slots are aligned.
  __device__ static int shift_of(const SideArgs& side, int64_t image) {
    if (A::kReach == Reach::whole) return 0;
    const int size = bytes_of(side.adv.dtype);
    const auto address = reinterpret_cast<uintptr_t>(side.adv.data) + image * side.adv.image_stride * size;
    return static_cast<int>(address / size % kSlot);
  }

  const SideArgs& side_;
  const int shift_;
  const Row<A::kReach> x_, v_;
  int64_t image_, begin_, end_;
};

// A 64-bit division takes longer than the rest of a task's preparation.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
  return (a | b) >> 32 ? a / b : static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
}

template <class A>
__global__ void __launch_bounds__(kMaxThreads, 3) images_kernel(const __grid_constant__ ImagesArgs args) {
  using T = typename A::Real;
  auto* kept = reinterpret_cast<typename A::VSlot*>(shared_memory() + kScratch) + threadIdx.x;
  for (int64_t task = blockIdx.x; task < args.side[0].tasks + args.side[1].tasks; task += gridDim.x) {
    const Side which = task < args.side[0].tasks ? Side::real : Side::fake;
    const SideArgs& side = args.side[static_cast<int>(which)];
    const int64_t index = which == Side::real ? task : task - args.side[0].tasks;
    const int64_t image = quotient(index, side.slices), slice = index - image * side.slices;
    const Share<A> share(side, image, slice);

    typename A::VSlot v[A::kDepth];
    typename A::XSlot x[A::kDepth];
    share.load_v(share.first(), v);
    share.load_x(share.first(), x);

    // The tiles after the first, which only a launch that needs norms has.
    const int64_t second = share.first() + share.tile(), rest = share.end() - second;
    for (int64_t done = 0; done < rest && done < args.kept; done += share.tile())
      share.keep_v(second + done, kept + done);
    const auto take_v = [&](int64_t done, typename A::VSlot(&out)[A::kDepth]) {
      if (done < args.kept)
#pragma unroll
        for (int d = 0; d < A::kDepth; ++d) out[d] = kept[done + d * blockDim.x];
      else
        share.load_v(second + done, out);
    };

    T coefficient = 1;
    Target<T> target;
    if (side.coefficient.data) {
      coefficient = read<T>(side.coefficient, image);
    } else if (args.attack) {
      const T logit = read<T>(args.logits.logits[static_cast<int>(which)], image);
      target = find_target<T>(args.logits, which);
      coefficient = term_of(args.logits, which, target, logit).coefficient;
    }
    if (side.weight.data) coefficient = unweighted(coefficient, read<T>(side.weight, image));

    double norm = 0;
    if (args.reduce) {
      double squares = Share<A>::sum_of_squares(v);
      Share<A>::arrived();
      for (int64_t done = 0; done < rest; done += share.tile()) {
        typename A::VSlot more[A::kDepth];
        take_v(done, more);
        squares += Share<A>::sum_of_squares(more);
      }
      norm = sqrt(cluster_sum(squares, kSquareSum, args.cluster));
      if (side.norms.data && slice == 0 && threadIdx.x == 0) write(side.norms, image, norm);
    }

    const T step = step_size(args.norm, T(args.eps), coefficient, T(norm));
    const T low = T(args.clip_min), high = T(args.clip_max);
    const bool use_sign = args.norm == Norm::linf;
    share.move(share.first(), x, v, step, use_sign, low, high, coefficient);
    for (int64_t done = 0; done < rest; done += share.tile()) {
      share.load_x(second + done, x);
      take_v(done, v);
      share.move(second + done, x, v, step, use_sign, low, high, coefficient);
    }

    if (image == 0 && slice == 0 && args.logits.losses.data) {
      write_loss(args.logits, which, target);
      const Side other = opposite(which);
      if (args.side[static_cast<int>(other)].tasks == 0 && threadIdx.x == 0)
        write(args.logits.losses, static_cast<int>(other), 0.0);
    }
    finish_sums(args.reduce ? args.cluster : 1);
  }
}

}  // namespace dat::cuda
