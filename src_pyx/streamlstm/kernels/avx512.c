/* The fused kernel for AVX-512. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernel.h"

#ifdef __x86_64__
#include <immintrin.h>

static int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

/* Only what stands between push and pop may use the target's instructions. */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")
#endif

#define VL 16
#define ROWS 6
#define SPLAT(s) ((vf)_mm512_set1_ps(s))
#define MULADD(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define REMAINDER(d, low, r) MULADD(-(low), r, MULADD(-(d), r, SPLAT(1.0f)))
#define MAX(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define MIN(a, b) ((vf)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define KERNEL streamlstm_avx512
#define NAME "avx512"
#define ARITHMETIC "f32-fma-2"
#include "fused.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
static int supported(void) { return 0; }
const Kernel streamlstm_avx512 = {.name = "avx512", .arithmetic = "f32-fma-2", .weights = "float32", .supported = supported};
#endif
