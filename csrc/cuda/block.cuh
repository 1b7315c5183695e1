// Sums over a block and over a cluster of blocks, always in the same order: the same inputs give the same bits.
#pragma once

#include "plan.h"

namespace dat::cuda {

// All shared memory is dynamic: kScratch bytes for the sums below, then the kept slots.
__device__ inline char* shared_memory() {
#ifdef DAT_EMULATION  // tests/cuda_emulation: g++ has no notion of memory shared by a block
  return dat_emulation::shared_memory();
#else
  extern __shared__ __align__(16) char memory[];
  return memory;
#endif
}

// Each sum of a task has partial sums of its own, so that no barrier is needed between one sum and the next.
enum Sum { kTargetSum, kOwnSum, kSquareSum, kLossSum, kSums };
static_assert(kSums * (kLossThreads / kWarp) * sizeof(double) <= kScratch, "the scratch space is too small");

__device__ inline double* partial_sums(Sum which) {
  return reinterpret_cast<double*>(shared_memory()) + which * (kLossThreads / kWarp);
}

__device__ inline double warp_sum(double value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

__device__ inline double total(const double* partial) {
  double sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += partial[warp];
  return sum;
}

// The block's sum, in every thread.
__device__ inline double block_sum(double value, Sum which) {
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) partial_sums(which)[threadIdx.x / kWarp] = value;
  __syncthreads();
  return total(partial_sums(which));
}

// The sum over the `blocks` blocks of a cluster, in every thread of each.
__device__ inline double cluster_sum(double value, Sum which, int blocks) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (blocks > 1) {
    value = warp_sum(value);
    if (threadIdx.x % kWarp == 0) partial_sums(which)[threadIdx.x / kWarp] = value;
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
    double sum = 0;
    for (int rank = 0; rank < blocks; ++rank)
      sum += total(static_cast<const double*>(__cluster_map_shared_rank(partial_sums(which), rank)));
    __cluster_barrier_arrive();  // finish_sums waits
    return sum;
  }
#endif
  return block_sum(value, which);
}

// Before the block's next task or its end: no block may go while another still reads its partial sums.
__device__ inline void finish_sums(int blocks) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (blocks > 1) return __cluster_barrier_wait();
#endif
  __syncthreads();
}

}  // namespace dat::cuda
