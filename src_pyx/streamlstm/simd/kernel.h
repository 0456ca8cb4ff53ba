/* What a fused float32 kernel is: a table of functions, one table per target.
 *
 * Weights are packed once, for the lanes VL of a target, as panels of VL units:
 *   LSTM   w [panel][k][gate][VL]  k over the inputs, then over h; gates i, f, g, o
 *          b [panel][gate][VL]
 *   dense  w [panel][k][VL], b [panel][VL]
 * The last panel is filled up with zeros. Every pre-activation is one chain of
 * multiply-adds from zero over k, in this order, and then its bias (which is often the
 * largest: added first, each later sum would be rounded at its size), whatever the batch,
 * the tile, the lanes or the thread: this is what makes a stream's bits its own.
 */
#ifndef STREAMLSTM_KERNEL_H
#define STREAMLSTM_KERNEL_H

#include <stddef.h>

typedef struct {
    int inputs, units;
    ptrdiff_t h, c;         /* where h and c stand in a row, in floats */
    int activation;         /* dense: 0 linear, 1 tanh, 2 sigmoid, 3 relu */
    const float *w, *b;     /* packed, aligned to 64 bytes */
} fused_layer;

typedef struct {
    const char *arithmetic; /* kernels of one class give the same bits */
    int lanes;
    /* T steps of n streams: x [n, T, inputs] -> out [n, T, units]; h and c in `rows`
     * move on. z is scratch for n * T * 4 * (units up to whole panels) floats. */
    void (*lstm)(const fused_layer *, ptrdiff_t n, ptrdiff_t steps, char **rows,
                 const float *x, float *z, float *out);
    /* x [n, inputs] -> out [n, units] */
    void (*dense)(const fused_layer *, ptrdiff_t n, const float *x, float *out);
    /* n values through one function, for tests: 0 exp, 1 tanh, 2 sigmoid */
    void (*apply)(int function, ptrdiff_t n, const float *x, float *y);
} fused_kernel;

/* NULL where this build or this CPU lacks the target. */
const fused_kernel *streamlstm_kernel_avx512(void);
const fused_kernel *streamlstm_kernel_avx2(void);
const fused_kernel *streamlstm_kernel_portable(void);

/* Denormals cost a hundred cycles each and mean nothing here: they are flushed while a
 * network runs. Rounding is to nearest and no exception is trapped, whatever the caller
 * had set; the caller's mode is put back. */
#if defined(__x86_64__)
#include <xmmintrin.h>
typedef unsigned int float_mode;
static inline float_mode flush_denormals(void) {
    float_mode old = _mm_getcsr();
    _mm_setcsr(0x1F80 | 0x8040); /* the default, with FTZ and DAZ */
    return old;
}
static inline void restore_float_mode(float_mode old) { _mm_setcsr(old); }
#elif defined(__aarch64__)
typedef unsigned long float_mode;
static inline float_mode flush_denormals(void) {
    float_mode old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(1ul << 24)); /* the default, with FZ */
    return old;
}
static inline void restore_float_mode(float_mode old) {
    __asm__ volatile("msr fpcr, %0" : : "r"(old));
}
#endif

#endif
