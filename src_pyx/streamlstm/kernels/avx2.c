/* The fused kernel for AVX2 with FMA. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernel.h"

#ifdef __x86_64__
#include <immintrin.h>

static int supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* Only what stands between push and pop may use the target's instructions. */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define VL 8
#define ROWS 3
#define SPLAT(s) ((vf)_mm256_set1_ps(s))
#define MULADD(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define REMAINDER(d, low, r) MULADD(-(low), r, MULADD(-(d), r, SPLAT(1.0f)))
#define MAX(a, b) ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define MIN(a, b) ((vf)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define KERNEL streamlstm_avx2
#define NAME "avx2"
#define ARITHMETIC "f32-fma-2"
#include "fused.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
static int supported(void) { return 0; }
const Kernel streamlstm_avx2 = {.name = "avx2", .arithmetic = "f32-fma-2", .weights = "float32", .supported = supported};
#endif
