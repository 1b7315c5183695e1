// Chooses the inner loops built for the best instruction set this processor has.
#ifdef DAT_X86
#include <cpuid.h>
#endif

#include <cstdlib>
#include <string>

#include "rows.h"

namespace dat::cpu {

namespace baseline {
extern const Rows<float> rows_float;
extern const Rows<double> rows_double;
}  // namespace baseline

#ifdef DAT_X86
namespace avx2 {
extern const Rows<float> rows_float;
extern const Rows<double> rows_double;
}  // namespace avx2
namespace avx512 {
extern const Rows<float> rows_float;
extern const Rows<double> rows_double;
}  // namespace avx512

namespace {

enum Level { kBaseline, kAvx2, kAvx512 };

bool has_f16c() {  // conversions to and from half; older compilers' __builtin_cpu_supports does not know the name
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_F16C;
}

// DATGAN_FAST_ISA=baseline or avx2 holds the choice down, for tests on machines that have more.
Level level() {
  static const Level best = [] {
    const char* asked = std::getenv("DATGAN_FAST_ISA");
    const std::string limit = asked ? asked : "";
    const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (limit == "baseline" || !wide) return kBaseline;
    const bool wider = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    return limit == "avx2" || !wider ? kAvx2 : kAvx512;
  }();
  return best;
}

}  // namespace

template <>
const Rows<float>& rows_for<float>() {
  return level() == kAvx512 ? avx512::rows_float : level() == kAvx2 ? avx2::rows_float : baseline::rows_float;
}
template <>
const Rows<double>& rows_for<double>() {
  return level() == kAvx512 ? avx512::rows_double : level() == kAvx2 ? avx2::rows_double : baseline::rows_double;
}
const char* instruction_set() { return level() == kAvx512 ? "avx512" : level() == kAvx2 ? "avx2" : "baseline"; }
#else
template <>
const Rows<float>& rows_for<float>() {
  return baseline::rows_float;
}
template <>
const Rows<double>& rows_for<double>() {
  return baseline::rows_double;
}
const char* instruction_set() { return "baseline"; }
#endif

}  // namespace dat::cpu
