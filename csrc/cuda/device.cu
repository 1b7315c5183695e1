#include <cuda_runtime.h>

#include "device.h"

namespace dat::cuda {

std::string device_problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) return "no CUDA device";
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace dat::cuda
