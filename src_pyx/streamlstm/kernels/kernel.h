/* What a layer is to a kernel, and what a kernel is: a row of functions. table.pyx lists the rows.
 *
 * Weights are packed once, by the row's own pack(), as panels of `lanes` units, the last one filled
 * up with zeros; a row without lanes (BLAS) has one panel of all units:
 *   LSTM   w [panel][k][gate][lane]  k over the inputs, then over h; gates i, f, g, o but a coupled
 *          b, norm [panel][gate][lane]; peep [panel][3][lane] of i, f, o, with zeros for a coupled
 *   GRU    w [panel][k][gate][lane]  gates r, z, n over the inputs; then r, z, n over h, or, with
 *          the reset before the product, r, z, and w_p [panel][k][lane] has n's
 *          b [panel][4][lane] of r, z, n and, inside the reset, n again
 *   dense  w [panel][k][lane], b [panel][lane]; so too a projection's w_p, b_p
 * In the fused kernels every sum is one chain of multiply-adds from zero over k, in this order, and
 * the bias comes after it (it is often the largest: added first, each later sum would be rounded at
 * its size), whatever the batch, the tile, the lanes or the thread: this is what makes a stream's
 * bits its own. Peepholes stand between the sum and the bias, so does layer norm.
 */
#ifndef STREAMLSTM_KERNEL_H
#define STREAMLSTM_KERNEL_H

#include <stddef.h>

enum { LSTM, GRU, DENSE, ACTIVATION, EMBEDDING }; /* kinds */
enum { LINEAR, TANH, SIGMOID, RELU, HARD_SIGMOID, HARD_SIGMOID6, SOFTMAX }; /* functions */
enum { UNCOUPLED, COUPLED_I, COUPLED_F }; /* i = 1 - f; f = 1 - i */
enum { FLOAT32, FLOAT64 }; /* types of numbers */
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
    const void *w, *b, *peep, *norm, *w_p, *b_p;
} Layer;

/* Of a recurrent layer over T steps of n streams, in numbers: z [n, T, 4 * units up to whole
 * panels], m [n, 3 * units or, of a projection, units], h [n, outputs]. */
typedef struct {
    void *z, *m, *h;
} Scratch;

/* Vectors x and out are of the row's numbers, and so are h, c, biases, peepholes and norms.
 * `weights` may be of another type: only `pack` and the two products know it. */
typedef struct {
    const char *name;
    const char *arithmetic; /* kernels of one class give the same bits */
    const char *weights;    /* their format: "float32", "float64" */
    int numbers;            /* FLOAT32 or FLOAT64 */
    int lanes;              /* of a panel; 0: all units */
    int same_bits;          /* a stream's bits are its own, whatever is stepped with it */
    int own_threads;        /* it may start some: long calls are held to one */
    int (*supported)(void); /* by this CPU and this build */
    /* Packed: bytes of one panel of a matrix [gates][units][depth]; and all its panels, `stride`
     * bytes apart. */
    ptrdiff_t (*panel_bytes)(int gates, int units, int depth);
    void (*pack)(int gates, int units, int depth, const void *w, char *to, ptrdiff_t stride);
    /* T steps of n streams: x [n, T, inputs] -> out [n, T, outputs]; h and c in `rows` move on. */
    void (*recurrent)(const Layer *, ptrdiff_t n, ptrdiff_t steps, char **rows, const void *x,
                      const Scratch *, void *out);
    /* x [n, inputs] -> out [n, units] */
    void (*dense)(const Layer *, ptrdiff_t n, const void *x, void *out);
    /* x [n, units] -> out [n, units], which may be the same */
    void (*activation)(int function, ptrdiff_t n, ptrdiff_t units, const void *x, void *out);
    /* e^x of n values, for tests; NULL where it is the C library's */
    void (*exponential)(ptrdiff_t n, const void *x, void *y);
} Kernel;

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
