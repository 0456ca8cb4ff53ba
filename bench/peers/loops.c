/* What one core can do at most, and the fused kernel without Python around it; for limits.py,
 * which compiles this file for the machine it runs on. */
#include "kernel.h"

#include <stdlib.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define SUMS 12 /* in registers; more than latency x throughput of an addition */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define UNROLL _Pragma("GCC unroll 12")

static float total(const vec *sums) {
    float t = 0;
    for (int s = 0; s < SUMS; s++)
        for (int k = 0; k < LANES; k++)
            t += sums[s][k];
    return t;
}

/* Read n floats front to back, `times` times. */
float read_floats(const float *p, ptrdiff_t n, long times) {
    vec sums[SUMS] = {{0}};
    for (long t = 0; t < times; t++) {
        ptrdiff_t i = 0;
        for (; i + SUMS * LANES <= n; i += SUMS * LANES)
            UNROLL for (int s = 0; s < SUMS; s++)
                sums[s] += *(const vec *)(p + i + s * LANES);
        for (; i + LANES <= n; i += LANES)
            sums[0] += *(const vec *)(p + i);
        __asm__ volatile("" ::: "memory"); /* read it again next time */
    }
    return total(sums);
}

/* Multiply-adds on registers alone; each of `times` is SUMS x LANES of them. */
float multiply_add(long times) {
    vec sums[SUMS], a, b;
    for (int k = 0; k < LANES; k++) {
        a[k] = 0.999999f, b[k] = 1e-7f;
        for (int s = 0; s < SUMS; s++)
            sums[s][k] = s; /* equal sums would be computed once */
    }
    for (long t = 0; t < times; t++)
        UNROLL for (int s = 0; s < SUMS; s++)
            sums[s] = sums[s] * a + b;
    return total(sums);
}

int multiply_adds(void) { return SUMS * LANES; }

/* ---- the kernel alone ---- */

typedef struct {
    const Kernel *kernel;
    ptrdiff_t n, steps;  /* of one call */
    char **rows;
    const float *x;      /* [events, n, inputs]; a call takes `steps` of them */
    ptrdiff_t events;
    int count;
    Layer layers[8];
    float *between[2];   /* outputs of the layers in turn */
    float *z;
} network;

/* units_padded: up to whole panels of any kernel. */
network *new_network(const Kernel *kernel, ptrdiff_t n, ptrdiff_t steps, char **rows,
                     const float *x, ptrdiff_t events, ptrdiff_t units_padded) {
    network *net = calloc(1, sizeof *net);
    *net = (network){
        .kernel = kernel, .n = n, .steps = steps, .rows = rows, .x = x, .events = events};
    for (int k = 0; k < 2; k++)
        net->between[k] = calloc(n * steps * units_padded, sizeof(float));
    net->z = calloc(n * steps * 4 * units_padded, sizeof(float));
    return net;
}

void add_layer(network *net, int inputs, int units, ptrdiff_t h, const float *w, const float *b) {
    net->layers[net->count++] = (Layer){
        .kind = LSTM, .plain = 1, .inputs = inputs, .units = units, .outputs = units,
        .h = h, .c = h + units, .w = w, .b = b};
}

/* So many calls; the outputs of the last one, [n, steps, units]. */
const float *run_network(network *net, long calls) {
    float_mode mode = flush_denormals();
    const float *in = net->x;
    for (long t = 0; t < calls; t++) {
        in = net->x + t * net->steps % net->events * net->n * net->layers[0].inputs;
        for (int k = 0; k < net->count; k++) {
            float *out = net->between[k % 2];
            const Scratch scratch = {.z = net->z};
            net->kernel->recurrent(&net->layers[k], net->n, net->steps, net->rows, in, &scratch, out);
            in = out;
        }
    }
    restore_float_mode(mode);
    return in;
}

void free_network(network *net) {
    for (int k = 0; k < 2; k++)
        free(net->between[k]);
    free(net->z);
    free(net);
}
