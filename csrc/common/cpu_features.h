#pragma once

namespace fullspectrum {

// The instruction sets that the vectorised kernels are compiled for.
enum class Isa { baseline, avx2, avx512, avx512_vnni };

// The best one this processor has. The environment variable FULLSPECTRUM_ISA lowers it (for tests
// and measurements); a name that is not known, or not to be had here, leaves it as it is.
Isa active_isa();

const char* isa_name(Isa isa);

// The kernels of that instruction set: FULLSPECTRUM_ACTIVE(gram_kernels()) calls the function of
// this name in namespace avx512, avx2 or baseline; FULLSPECTRUM_ACTIVE_VNNI that in avx512_vnni,
// too.
#if defined(__x86_64__)
#define FULLSPECTRUM_ACTIVE(...)                     \
  (active_isa() >= Isa::avx512 ? avx512::__VA_ARGS__ \
   : active_isa() == Isa::avx2 ? avx2::__VA_ARGS__   \
                               : baseline::__VA_ARGS__)
#define FULLSPECTRUM_ACTIVE_VNNI(...) \
  (active_isa() == Isa::avx512_vnni ? avx512_vnni::__VA_ARGS__ : FULLSPECTRUM_ACTIVE(__VA_ARGS__))
#else
#define FULLSPECTRUM_ACTIVE(...) baseline::__VA_ARGS__
#define FULLSPECTRUM_ACTIVE_VNNI(...) baseline::__VA_ARGS__
#endif

}  // namespace fullspectrum
