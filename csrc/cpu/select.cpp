// Chooses the inner loops built for the best instruction set this processor has.
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
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() { return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"); }
}  // namespace

template <>
const Rows<float>& rows_for<float>() {
  static const Rows<float>& best = has_avx512() ? avx512::rows_float : has_avx2() ? avx2::rows_float : baseline::rows_float;
  return best;
}
template <>
const Rows<double>& rows_for<double>() {
  static const Rows<double>& best =
      has_avx512() ? avx512::rows_double : has_avx2() ? avx2::rows_double : baseline::rows_double;
  return best;
}
const char* instruction_set() { return has_avx512() ? "avx512" : has_avx2() ? "avx2" : "baseline"; }
#else
template <>
const Rows<float>& rows_for<float>() { return baseline::rows_float; }
template <>
const Rows<double>& rows_for<double>() { return baseline::rows_double; }
const char* instruction_set() { return "baseline"; }
#endif

}  // namespace dat::cpu
