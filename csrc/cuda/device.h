// What the CUDA runtime says about this machine's GPUs.
#pragma once

#include <string>

namespace dat::cuda {

std::string device_problem();  // why no CUDA kernel can run here; empty if one can

}  // namespace dat::cuda
