// How a launch is laid out: pure host arithmetic in int64, so that tests reach sizes that no test machine could hold.
//
// An image is cut into slots of a few elements, what a thread reads at once. A task is one block's share of one image,
// a row of slots, of which each thread takes every threads-th, `depth` of them at a time (a tile).
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "../tensor.h"

namespace dat::cuda {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 192;  // of the pass over the images, 4 slots each: a float 3 x 32 x 32 image
constexpr int kLossThreads = 1024;
constexpr int64_t kLargestGrid = 2147483647;  // of grid.x; the other two stop at 65535
constexpr int64_t kMaxKept = 96 * 1024;       // bytes of an image kept in shared memory; two blocks fit on one SM
constexpr int64_t kScratch = 1024;  // bytes of shared memory before the kept slots: the reductions' partial sums

// Up to so many logits every block reduces them for itself, hidden behind its own loads. Above it a first launch does.
constexpr int64_t kOneLaunchLogits = 2048;

struct Limits {
  int threads = kMaxThreads;
  int cluster = 1;             // blocks that can add up one image's norm together; 1 below sm_90
  int64_t shared = 48 * 1024;  // bytes per block
  int64_t grid = kLargestGrid;
};

struct Work {  // one side's images
  int64_t images = 0, slots = 0;
};

struct Plan {
  int64_t tasks[2] = {}, slices[2] = {1, 1}, share[2] = {};  // per side: tasks, tasks per image, slots per task
  int64_t grid = 0, kept = 0;                                // kept: slots of v held in shared memory
  int threads = kWarp, cluster = 1;
  int64_t shared = 0;  // bytes
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Slots start where adv's memory is aligned, so that an image which is not begins and ends with a partial one.
inline int64_t slots_of(int64_t numel, int64_t slot, bool aligned) {
  return numel == 0 ? 0 : divide_up(numel + (aligned ? 0 : slot - 1), slot);
}

// depth: slots a thread has in flight; slot_bytes: size of one slot of v; reduce: each image's norm is needed.
inline Plan make_plan(const Work (&work)[2], bool reduce, int depth, int64_t slot_bytes, const Limits& limits) {
  Plan plan;
  const int64_t most = std::min<int64_t>(limits.threads, kMaxThreads), largest_tile = most * depth;
  int64_t largest = 1;
  for (const Work& side : work)
    if (side.images) largest = std::max(largest, side.slots);
  if (reduce)
    while (plan.cluster < limits.cluster && divide_up(largest, plan.cluster) > largest_tile) plan.cluster *= 2;

  int64_t share = 1;
  for (int side = 0; side < 2; ++side) {
    const int64_t slots = std::max<int64_t>(work[side].slots, 1);
    plan.slices[side] = reduce ? plan.cluster : divide_up(slots, largest_tile);
    plan.share[side] = divide_up(slots, plan.slices[side]);
    plan.tasks[side] = work[side].images * plan.slices[side];
    if (work[side].images) share = std::max(share, plan.share[side]);
  }
  const int64_t tiles = divide_up(share, largest_tile);
  plan.threads = static_cast<int>(std::min(divide_up(divide_up(share, tiles * depth), kWarp) * kWarp, most));
  const int64_t tile = int64_t{plan.threads} * depth;
  if (reduce) plan.kept = divide_up(share, tile) * tile - tile;  // the first tile stays in registers
  const int64_t room = std::max<int64_t>(std::min(limits.shared, kMaxKept + kScratch) - kScratch, 0);
  plan.kept = std::min(plan.kept, room / (tile * slot_bytes) * tile);  // whole tiles
  plan.shared = kScratch + plan.kept * slot_bytes;
  plan.grid = std::min(plan.tasks[0] + plan.tasks[1], limits.grid / plan.cluster * plan.cluster);
  return plan;
}

inline Plan make_loss_plan(int64_t logits, const Limits& limits) {  // one block for each side
  Plan plan;
  plan.grid = 2;
  plan.threads = static_cast<int>(
      std::clamp<int64_t>(divide_up(logits, kWarp) * kWarp, kWarp, std::min(limits.threads, kLossThreads)));
  plan.shared = kScratch;
  return plan;
}

// True where the operand's elements lie one after another in the order in which the layout walks an image.
inline bool is_linear(const Layout& layout, int operand) {
  int64_t expected = 1;
  for (int d = 0; d < layout.dims; ++d) {
    if (layout.stride[operand][d] != expected) return false;
    expected *= layout.size[d];
  }
  return true;
}

// True where every image is made of whole slots that begin at multiples of a vector access.
inline bool is_whole(uintptr_t address, int64_t item_size, int64_t images, int64_t image_stride, int64_t numel,
                     int64_t slot) {
  const int64_t bytes = std::min<int64_t>(slot * item_size, 16);
  return numel % slot == 0 && address % bytes == 0 && (images == 1 || image_stride * item_size % bytes == 0);
}

// Where nothing is computed per image, images that follow each other without gaps are one long image.
inline void flatten(Layout& layout, std::initializer_list<int> operands) {
  for (int k : operands)
    if (!is_linear(layout, k) || (layout.images > 1 && layout.image_stride[k] != layout.numel)) return;
  if (layout.images < 2) return;
  layout.numel *= layout.images;
  layout.images = 1;
  layout.dims = layout.numel ? 1 : 0;
  layout.size[0] = layout.numel;
  for (int k : operands) layout.stride[k][0] = 1;
}

}  // namespace dat::cuda
