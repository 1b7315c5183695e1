// Launching a kernel: what a device allows it, asked at its first launch there, and errors with the operation's name.
// Host code only. Nothing here allocates on a device or waits for one, so a launch can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "plan.h"

namespace dat::cuda {

inline void check(cudaError_t error, const char* operation) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it: the next operation is not to blame
  throw std::runtime_error(std::string(operation) + ": CUDA reports: " + cudaGetErrorString(error));
}

// Raises the kernel's limit of shared memory to all that the device has: the limit of a kernel is one for all its
// launches, those that a graph repeats included, so that no launch may set it to what it needs itself.
template <class Args>
Limits ask_limits(const char* operation, void (*kernel)(Args), int device) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), operation);
    return value;
  };
  Limits limits;
  limits.threads = attribute(cudaDevAttrMaxThreadsPerBlock);
  limits.grid = attribute(cudaDevAttrMaxGridDimX);
  limits.shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (attribute(cudaDevAttrClusterLaunch)) {
    cudaFuncAttributes code{};  // a narrowed build may run code of an older architecture here, which knows no clusters
    check(cudaFuncGetAttributes(&code, kernel), operation);
    if (code.ptxVersion >= 90) limits.cluster = 8;  // the largest size that every such GPU has
  }
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(limits.shared)),
        operation);
  return limits;
}

// The device is the current one.
template <class Args>
const Limits& limits_of(const char* operation, void (*kernel)(Args), int device) {
  static std::mutex mutex;
  static std::map<std::pair<void (*)(Args), int>, Limits> known;  // whose entries never move
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find({kernel, device});
  if (found == known.end())
    found = known.emplace(std::pair(kernel, device), ask_limits(operation, kernel, device)).first;
  return found->second;
}

template <class Args>
void launch(const char* operation, void (*kernel)(Args), const Plan& plan, const Args& args, void* stream) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = plan.cluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.grid));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = plan.cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args), operation);
  check(cudaGetLastError(), operation);
}

}  // namespace dat::cuda
