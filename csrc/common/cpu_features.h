#pragma once

namespace fullspectrum {

// The instruction sets that the vectorised kernels are compiled for.
enum class Isa { baseline, avx2, avx512 };

// The best one this processor has. The environment variable FULLSPECTRUM_ISA lowers it (for tests
// and measurements); a name that is not known, or not to be had here, leaves it as it is.
Isa active_isa();

const char* isa_name(Isa isa);

}  // namespace fullspectrum
