#include "common/cpu_features.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace fullspectrum {
namespace {

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) {
    return __builtin_cpu_supports("avx512vnni") ? Isa::avx512_vnni : Isa::avx512;
  }
  if (avx2) {
    return Isa::avx2;
  }
#endif
  return Isa::baseline;
}

Isa chosen_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("FULLSPECTRUM_ISA");
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_vnni}) {
    if (wanted != nullptr && isa <= best && std::strcmp(wanted, isa_name(isa)) == 0) {
      return isa;
    }
  }
  return best;
}

}  // namespace

Isa active_isa() {
  static const Isa isa = chosen_isa();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_vnni:
      return "avx512_vnni";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace fullspectrum
