/* What a layer is to a kernel, and what a fused float32 kernel is: a table of functions, one
 * table per target.
 *
 * Fused kernels have their weights packed once, for the lanes VL of a target, as panels of VL
 * units, the last one filled up with zeros:
 *   LSTM   w [panel][k][gate][VL]  k over the inputs, then over h; gates i, f, g, o but a coupled
 *          b, norm [panel][gate][VL]; peep [panel][3][VL] of i, f, o, with zeros for a coupled
 *   GRU    w [panel][k][gate][VL]  gates r, z, n over the inputs; then r, z, n over h, or, with
 *          the reset before the product, r, z, and w_p [panel][k][VL] has n's
 *          b [panel][4][VL] of r, z, n and, inside the reset, n again
 *   dense  w [panel][k][VL], b [panel][VL]; so too a projection's w_p, b_p
 * Every sum is one chain of multiply-adds from zero over k, in this order, and the bias comes
 * after it (it is often the largest: added first, each later sum would be rounded at its size),
 * whatever the batch, the tile, the lanes or the thread: this is what makes a stream's bits its
 * own. Peepholes stand between the sum and the bias, so does layer norm.
 */
#ifndef STREAMLSTM_KERNEL_H
#define STREAMLSTM_KERNEL_H

#include <stddef.h>

enum { LSTM, GRU, DENSE, ACTIVATION, EMBEDDING }; /* kinds */
enum { LINEAR, TANH, SIGMOID, RELU, HARD_SIGMOID, HARD_SIGMOID6, SOFTMAX }; /* functions */
enum { UNCOUPLED, COUPLED_I, COUPLED_F }; /* i = 1 - f; f = 1 - i */
#define SATURATION 1e15 /* layers.py */
#define NORM_EPSILON 1e-8

/* Options and weights of a layer; pointers are NULL where it has no such thing. */
typedef struct {
    int kind;
    int inputs, units, outputs; /* outputs differ from units in a projection */
    ptrdiff_t h, c;             /* where h and c stand in a row, in numbers */
    int function;               /* dense, activation: of the outputs */
    int gate, candidate, output; /* functions of a cell */
    int plain;                  /* the textbook's LSTM, but for a projection */
    int coupled, reset_after;
    double clip_gates, clip_cell, clip_projection; /* what does not clip is infinite */
    const void *w, *w_h, *b, *peep, *norm, *w_p, *b_p; /* w_h: by BLAS only */
} Layer;

typedef struct {
    const char *arithmetic; /* kernels of one class give the same bits */
    int lanes;
    /* T steps of n streams: x [n, T, inputs] -> out [n, T, outputs]; h and c in `rows`
     * move on. z is scratch for n * T * 4 * (units up to whole panels) floats, m for n * units. */
    void (*recurrent)(const Layer *, ptrdiff_t n, ptrdiff_t steps, char **rows,
                      const float *x, float *z, float *m, float *out);
    /* x [n, inputs] -> out [n, units] */
    void (*dense)(const Layer *, ptrdiff_t n, const float *x, float *out);
    /* x [n, units] -> out [n, units], which may be the same */
    void (*activation)(int function, ptrdiff_t n, ptrdiff_t units, const float *x, float *out);
    /* e^x of n values, for tests */
    void (*exponential)(ptrdiff_t n, const float *x, float *y);
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
