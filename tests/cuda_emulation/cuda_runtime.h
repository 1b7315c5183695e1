// A GPU for tests: g++ finds this file where the CUDA sources ask for <cuda_runtime.h>, and runs their kernels with one
// thread of the operating system for each CUDA thread. Barriers are real: sanitizers see the kernels' own races.
//
// Several blocks (always whole clusters) run at the same time; shared memory is filled with NaN before each block.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define DAT_EMULATION
#define __device__
#define __global__
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace dat_emulation {

struct Device {  // what the launchers may ask for; tests change it, and then its index, by which it is known
  int index = 0;
  int threads = 64, shared = 64 * 1024, clusters = 1, code = 90, grid = 2147483647;
  int fail = 0;                              // the next launch reports an error
  int idle = 0;                              // launches are noted and nothing runs
  int asked = 0, lowered = 0, launches = 0;  // questions, limits of kernels that fell, launches; tests reset
  unsigned last_grid = 0, last_threads = 0, last_cluster = 0, last_shared = 0;
};
inline Device device;
inline void (*note)(const void* kernel, const void* args) = nullptr;  // called at each launch

class Barrier {
 public:
  explicit Barrier(unsigned threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

struct Warp {
  Barrier barrier{32};
  double lane[32];
};

struct Block {
  Block(unsigned threads, size_t bytes) : barrier(threads), warps(threads / 32), shared(new double[bytes / 8 + 1]) {}
  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<double[]> shared;
};

struct Cluster {
  Cluster(unsigned blocks, unsigned threads, size_t bytes) : barrier(blocks * threads) {
    for (unsigned b = 0; b < blocks; ++b) block.push_back(std::make_unique<Block>(threads, bytes));
  }
  Barrier barrier;
  std::vector<std::unique_ptr<Block>> block;
};

inline thread_local Cluster* cluster;
inline thread_local Block* block;

inline char* shared_memory() { return reinterpret_cast<char*>(block->shared.get()); }

template <class Args>
void run_kernel(void (*kernel)(Args), const Args& args, unsigned grid, unsigned threads, unsigned cluster_size,
                size_t shared) {
  const unsigned clusters = grid / cluster_size;
  const unsigned at_once = std::min(clusters, std::max(1u, 192 / (cluster_size * threads)));
  std::vector<std::unique_ptr<Cluster>> running;
  std::vector<std::thread> pool;
  for (unsigned c = 0; c < at_once; ++c) running.push_back(std::make_unique<Cluster>(cluster_size, threads, shared));
  for (unsigned t = 0; t < at_once * cluster_size * threads; ++t)
    pool.emplace_back([&, t] {
      const unsigned mine = t / (cluster_size * threads), rank = t / threads % cluster_size;
      cluster = running[mine].get();
      block = cluster->block[rank].get();
      threadIdx = dim3(t % threads), blockDim = dim3(threads), gridDim = dim3(grid);
      for (unsigned c = mine; c < clusters; c += at_once) {
        blockIdx = dim3(c * cluster_size + rank);
        if (threadIdx.x == 0) std::fill_n(block->shared.get(), shared / 8, std::nan(""));
        cluster->barrier.wait();
        kernel(args);
        cluster->barrier.wait();
      }
    });
  for (std::thread& thread : pool) thread.join();
}

}  // namespace dat_emulation

inline void __syncthreads() {
#ifndef DAT_EMULATION_DROP_BARRIER
  dat_emulation::block->barrier.wait();
#endif
}

inline double __shfl_xor_sync(unsigned, double value, int lanes) {
  dat_emulation::Warp& warp = dat_emulation::block->warps[threadIdx.x / 32];
  warp.lane[threadIdx.x % 32] = value;
  warp.barrier.wait();
  const double result = warp.lane[threadIdx.x % 32 ^ lanes];
  warp.barrier.wait();
  return result;
}

inline void __cluster_barrier_arrive() {}
inline void __cluster_barrier_wait() { dat_emulation::cluster->barrier.wait(); }
inline void* __cluster_map_shared_rank(const void* address, unsigned rank) {
  const auto offset = static_cast<const char*>(address) - dat_emulation::shared_memory();
  return reinterpret_cast<char*>(dat_emulation::cluster->block.at(rank)->shared.get()) + offset;
}

// The parts of the runtime that the launchers use.
using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxGridDimX,
  cudaDevAttrClusterLaunch
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaFuncAttributes {
  int ptxVersion;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace dat_emulation {

inline thread_local cudaError_t last_error = cudaSuccess;
inline std::map<std::pair<const void*, int>, int> shared_limit;  // of a kernel on a device

inline cudaError_t result(bool good) {
  if (!good) last_error = cudaErrorInvalidConfiguration;
  return good ? cudaSuccess : cudaErrorInvalidConfiguration;
}

template <class Args>
int& limit_of(void (*kernel)(Args)) {
  const std::pair<const void*, int> key{reinterpret_cast<const void*>(kernel), device.index};
  return shared_limit.emplace(key, std::min(device.shared, 48 * 1024)).first->second;
}

}  // namespace dat_emulation

inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration argument"; }
inline cudaError_t cudaGetLastError() { return std::exchange(dat_emulation::last_error, cudaSuccess); }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int index) {
  dat_emulation::Device& d = dat_emulation::device;
  d.asked += 1;
  *value = which == cudaDevAttrMaxThreadsPerBlock             ? d.threads
           : which == cudaDevAttrMaxSharedMemoryPerBlockOptin ? d.shared
           : which == cudaDevAttrMaxGridDimX                  ? d.grid
                                                              : d.clusters;
  return dat_emulation::result(index == d.index);
}
template <class Args>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Args)) {
  attributes->ptxVersion = dat_emulation::device.code;
  dat_emulation::device.asked += 1;
  return cudaSuccess;
}
template <class Args>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Args), cudaFuncAttribute, int bytes) {
  dat_emulation::Device& d = dat_emulation::device;
  if (bytes < 0 || bytes > d.shared) return dat_emulation::result(false);
  int& limit = dat_emulation::limit_of(kernel);
  d.asked += 1;
  d.lowered += bytes < limit;
  limit = bytes;
  return cudaSuccess;
}
template <class Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Args), const Args& args) {
  dat_emulation::Device& d = dat_emulation::device;
  const unsigned cluster = config->numAttrs ? config->attrs->val.clusterDim.x : 1;
  const unsigned grid = config->gridDim.x, threads = config->blockDim.x;
  d.launches += 1;
  d.last_grid = grid, d.last_threads = threads, d.last_cluster = cluster;
  d.last_shared = static_cast<unsigned>(config->dynamicSmemBytes);
  if (d.fail || grid == 0 || grid > static_cast<unsigned>(d.grid) || grid % cluster || threads == 0 || threads % 32 ||
      threads > 1024 || cluster > 8 || (cluster > 1 && !d.clusters) ||
      d.last_shared > static_cast<unsigned>(dat_emulation::limit_of(kernel)))
    return d.fail = 0, dat_emulation::result(false);
  if (dat_emulation::note) dat_emulation::note(reinterpret_cast<const void*>(kernel), &args);
  if (!d.idle) dat_emulation::run_kernel(kernel, args, grid, threads, cluster, config->dynamicSmemBytes);
  return cudaSuccess;
}
