// Parallel loops on the OpenMP threads that torch already has.
//
// Linking an OpenMP runtime would load a second pool of threads beside torch's. GOMP_parallel is the entry point that
// GNU, LLVM and Intel runtimes all export; as weak symbols these names bind to whichever one torch brought into the
// process, and where there is none the loop runs on the calling thread.
#pragma once

#include <algorithm>
#include <cstdint>

extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*run)(void*), void* data, unsigned threads, unsigned flags);
__attribute__((weak)) int omp_get_max_threads();
__attribute__((weak)) int omp_get_num_threads();
__attribute__((weak)) int omp_get_thread_num();
__attribute__((weak)) int omp_in_parallel();
}

namespace dat::cpu {

inline bool has_openmp() {
  return GOMP_parallel && omp_get_max_threads && omp_get_num_threads && omp_get_thread_num && omp_in_parallel;
}

// Calls body(begin, end) on consecutive shares of [0, units); the shares depend on nothing but the thread count.
template <class Body>
void parallel_for(int64_t units, int64_t work, const Body& body) {
  constexpr int64_t kWorthwhile = 16384;  // elements below which waking threads costs more than it saves
  if (units < 2 || work < kWorthwhile || !has_openmp() || omp_in_parallel() || omp_get_max_threads() < 2) {
    if (units > 0) body(int64_t{0}, units);
    return;
  }
  struct Region {
    const Body& body;
    int64_t units;
  } region{body, units};
  const auto threads = static_cast<unsigned>(std::min<int64_t>(omp_get_max_threads(), units));
  GOMP_parallel(
      [](void* data) {
        const Region& r = *static_cast<const Region*>(data);
        const int64_t t = omp_get_thread_num(), n = omp_get_num_threads();
        const int64_t begin = r.units * t / n, end = r.units * (t + 1) / n;
        if (begin < end) r.body(begin, end);
      },
      &region, threads, 0);
}

}  // namespace dat::cpu
