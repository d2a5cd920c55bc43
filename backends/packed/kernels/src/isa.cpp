// Which instruction sets this build has and this machine runs.
#include "core.h"

#ifndef SE_UNITS // bit i: the unit of instruction set i is linked
#define SE_UNITS 1
#endif

namespace se {
namespace {

bool runs(int32_t isa) {
  if (isa == SE_PORTABLE) return true;
  if (!(SE_UNITS >> isa & 1)) return false;
#if defined(__x86_64__)
#ifdef SE_EMULATE // the 512-bit units over AVX2: for tests of their logic, slow
  if (isa >= SE_AVX512) isa = SE_AVX2;
#endif
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("popcnt");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (isa == SE_AVX2) return avx2;
  if (isa == SE_AVX512) return avx512;
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vbmi2") &&
                    __builtin_cpu_supports("avx512vnni");
  if (isa == SE_AVX512_VNNI) return vnni;
  return isa == SE_AVX512_BF16 && vnni && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

} // namespace

const Kernels *kernels(int32_t isa) {
  if (isa < 0 || isa >= SE_ISAS || !runs(isa)) return nullptr;
  switch (isa) {
#if SE_UNITS & 2
  case SE_AVX2:
    return &kAvx2;
#endif
#if SE_UNITS & 4
  case SE_AVX512:
    return &kAvx512;
#endif
#if SE_UNITS & 8
  case SE_AVX512_VNNI:
    return &kAvx512Vnni;
#endif
#if SE_UNITS & 16
  case SE_AVX512_BF16:
    return &kAvx512Bf16;
#endif
  default:
    return &kPortable;
  }
}

} // namespace se

extern "C" {
int32_t se_abi_version(void) { return SE_ABI_VERSION; }
int32_t se_operators(void) { return SE_OPERATORS; }
int32_t se_isa_runs(int32_t isa) { return se::kernels(isa) != nullptr; }
}
