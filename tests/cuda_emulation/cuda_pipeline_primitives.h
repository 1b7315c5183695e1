// Stands in for CUDA's header of the same name. Copies arrive when they are waited for and not before, so that reading
// one too early finds the NaN with which shared memory began.
#pragma once

#include <cstring>
#include <vector>

namespace dat_emulation {

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};
inline thread_local std::vector<Copy> copies;

}  // namespace dat_emulation

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  dat_emulation::copies.push_back({to, from, bytes});
}

inline void __pipeline_commit() {}

inline void __pipeline_wait_prior(size_t) {
  for (const dat_emulation::Copy& copy : dat_emulation::copies) std::memcpy(copy.to, copy.from, copy.bytes);
  dat_emulation::copies.clear();
}
