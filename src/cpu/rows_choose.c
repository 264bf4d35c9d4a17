/* Which row kernels this machine can run, and which to use. */
#include "base/env.h"
#include "cpu/rows.h"
#include <stdio.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* __builtin_cpu_supports asks for the operating system's part too (saved registers); clang 14 does not know f16c. */
static bool has_avx2(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_F16C)) return false;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

const fe_rows *const *fe_rows_available(void) {
    static const fe_rows *const all[] = {&fe_rows_avx512, &fe_rows_avx2, &fe_rows_scalar, NULL};
    return has_avx512() ? all : has_avx2() ? all + 1 : all + 2;
}
#elif defined(__aarch64__)
const fe_rows *const *fe_rows_available(void) { /* Advanced SIMD is part of the AArch64 Linux ABI */
    static const fe_rows *const all[] = {&fe_rows_neon, &fe_rows_scalar, NULL};
    return all;
}
#else
const fe_rows *const *fe_rows_available(void) {
    static const fe_rows *const all[] = {&fe_rows_scalar, NULL};
    return all;
}
#endif

ferry_status fe_rows_choose(const fe_rows **table) {
    const fe_rows *const *all = fe_rows_available();
    const char *wanted = fe_env_text(FE_ENV_FERRY_CPU_KERNELS);
    *table = all[0];
    if (!wanted || strcmp(wanted, "best") == 0) return FERRY_OK;
    char list[64] = "best";
    for (int i = 0; all[i]; i++) {
        *table = all[i];
        if (strcmp(wanted, all[i]->name) == 0) return FERRY_OK;
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, ", %s", all[i]->name);
    }
    *table = NULL;
    return fe_fail(FERRY_INVALID, "FERRY_CPU_KERNELS=%s: this machine can run %s", wanted, list);
}
