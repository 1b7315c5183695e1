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
                       Norm norm, T low, T high, T coefficient) const {
    // Made here and not at the beginning: while the logits are reduced, registers are short.
    const Row<A::kReach> adv(side_.adv, side_.walk, image_, kSlot, shift_);
    const Row<A::kReach> grad(side_.grad, side_.walk, image_, kSlot, shift_);
#pragma unroll
    for (int d = 0; d < kDepth; ++d, j += blockDim.x) {
      if (j >= end_) return;
      T out[kSlot];
      for (int k = 0; k < kSlot; ++k) {
        const T along = direction(norm, T(widen(v[d].get(k))), coefficient);
        out[k] = clip(T(widen(x[d].get(k))) - step * along, low, high);
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

// The tiles of a share after its first, which only a launch that needs norms has. The first of them, as many as there
// is room for, wait in shared memory between their two uses.
template <class A>
class LaterTiles {
 public:
  using VSlot = typename A::VSlot;

  __device__ LaterTiles(const Share<A>& share, const ImagesArgs& args)
      : share_(share), args_(args), second_(share.first() + share.tile()), slots_(share.end() - second_),
        kept_(reinterpret_cast<VSlot*>(shared_memory() + kScratch) + threadIdx.x) {}

  __device__ void keep() const {
    for (int64_t at = 0; at < slots_ && at < args_.kept; at += share_.tile()) share_.keep_v(second_ + at, kept_ + at);
  }

  // Calls body(slots before the tile) for every tile.
  template <class Body>
  __device__ void for_each(const Body& body) const {
    for (int64_t at = 0; at < slots_; at += share_.tile()) body(at);
  }

  __device__ int64_t slot(int64_t at) const { return second_ + at; }  // the thread's first of the tile

  __device__ void take_v(int64_t at, VSlot (&v)[A::kDepth]) const {
    if (at < args_.kept)
#pragma unroll
      for (int d = 0; d < A::kDepth; ++d) v[d] = kept_[at + d * blockDim.x];
    else
      share_.load_v(second_ + at, v);
  }

 private:
  const Share<A>& share_;
  const ImagesArgs& args_;
  const int64_t second_, slots_;
  VSlot* kept_;
};

struct Task {  // a block's share of one image
  Side side;
  int64_t image, slice;
};

__device__ inline Task task_of(const ImagesArgs& args, int64_t number) {
  const int64_t real_tasks = args.side[0].tasks;
  const Side side = number < real_tasks ? Side::real : Side::fake;
  const int64_t index = side == Side::real ? number : number - real_tasks;
  const int64_t slices = args.side[static_cast<int>(side)].slices, image = quotient(index, slices);
  return {side, image, index - image * slices};
}

// The factor of v in the attack's gradient; finds the target on the way, where the logits are reduced here.
template <class T>
__device__ T coefficient_of(const ImagesArgs& args, const Task& task, Target<T>& target) {
  const SideArgs& side = args.side[static_cast<int>(task.side)];
  T coefficient = 1;
  if (side.coefficient.data) {
    coefficient = read<T>(side.coefficient, task.image);
  } else if (args.attack) {
    const T logit = read<T>(args.logits.logits[static_cast<int>(task.side)], task.image);
    target = find_target<T>(args.logits, task.side);
    coefficient = term_of(args.logits, task.side, target, logit).coefficient;
  }
  return side.weight.data ? unweighted(coefficient, read<T>(side.weight, task.image)) : coefficient;
}

// ||v|| of the task's image, the first tile of which is `first`; on the way what is asked for of it is written.
template <class A>
__device__ double norm_of(const ImagesArgs& args, const Task& task, const typename A::VSlot (&first)[A::kDepth],
                          const LaterTiles<A>& later) {
  double squares = Share<A>::sum_of_squares(first);
  Share<A>::arrived();
  later.for_each([&](int64_t at) {
    typename A::VSlot more[A::kDepth];
    later.take_v(at, more);
    squares += Share<A>::sum_of_squares(more);
  });
  const double norm = sqrt(cluster_sum(squares, kSquareSum, args.cluster));
  const SideArgs& side = args.side[static_cast<int>(task.side)];
  if (side.norms.data && task.slice == 0 && threadIdx.x == 0)
    write(side.norms, task.image,
          side.weight.data ? unweighted_norm(norm, read<double>(side.weight, task.image)) : norm);
  return norm;
}

// By the block that has the first task of its side; the loss of a side without images is 0.
template <class T>
__device__ void write_losses(const ImagesArgs& args, Side side, const Target<T>& target) {
  write_loss(args.logits, side, target);
  const int other = static_cast<int>(opposite(side));
  if (args.side[other].tasks == 0 && threadIdx.x == 0) write(args.logits.losses, other, 0.0);
}

template <class A>
__device__ void run_task(const ImagesArgs& args, const Task& task) {
  using T = typename A::Real;
  const Share<A> share(args.side[static_cast<int>(task.side)], task.image, task.slice);
  typename A::VSlot v[A::kDepth];
  typename A::XSlot x[A::kDepth];
  share.load_v(share.first(), v);
  share.load_x(share.first(), x);
  const LaterTiles<A> later(share, args);
  later.keep();

  Target<T> target;
  const T coefficient = coefficient_of(args, task, target);
  const double norm = args.reduce ? norm_of(args, task, v, later) : 0;

  const T step = step_size(args.norm, T(args.eps), coefficient, T(norm));
  const T low = T(args.clip_min), high = T(args.clip_max);
  share.move(share.first(), x, v, step, args.norm, low, high, coefficient);
  later.for_each([&](int64_t at) {
    share.load_x(later.slot(at), x);  // first: what v is taken from may have to be waited for
    later.take_v(at, v);
    share.move(later.slot(at), x, v, step, args.norm, low, high, coefficient);
  });

  if (task.image == 0 && task.slice == 0 && args.logits.losses.data) write_losses(args, task.side, target);
  finish_sums(args.reduce ? args.cluster : 1);
}

template <class A>
__global__ void __launch_bounds__(kMaxThreads, 3) images_kernel(const __grid_constant__ ImagesArgs args) {
  // Both counts stay in constant memory: their sum in a register would be one too many.
  for (int64_t number = blockIdx.x; number < args.side[0].tasks + args.side[1].tasks; number += gridDim.x)
    run_task<A>(args, task_of(args, number));
}

}  // namespace dat::cuda
