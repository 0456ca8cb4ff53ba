/* The fused kernel in plain vector extensions: any CPU, products rounded before they
 * are added (-ffp-contract=off), and so an arithmetic class of its own. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernel.h"

#define VL 4
#define ROWS 2
#define SPLAT(s) splat(s)
#define MULADD(a, b, c) ((a) * (b) + (c))
#define REMAINDER(d, low, r) remainder_of(d, low, r)
#define MAX(a, b) choose((a) > (b), a, b)
#define MIN(a, b) choose((a) < (b), a, b)
#define KERNEL streamlstm_portable
#define NAME "portable"
#define ARITHMETIC "f32-muladd-2"

typedef float vf_ __attribute__((vector_size(16)));
typedef int32_t vi_ __attribute__((vector_size(16)));
static inline vf_ splat(float s) { return (vf_){s, s, s, s}; }
static inline vf_ choose(vi_ take, vf_ a, vf_ b) {
    return (vf_)(((vi_)a & take) | ((vi_)b & ~take));
}
/* The leading 12 bits: the product of two such is exact. */
static inline vf_ head(vf_ a) { return (vf_)((vi_)a & ~0xFFF); }
static inline vf_ remainder_of(vf_ d, vf_ low, vf_ r) {
    vf_ d_head = head(d), r_head = head(r);
    return splat(1.0f) - d_head * r_head - (d_head * (r - r_head) + (d - d_head + low) * r);
}
static int supported(void) { return 1; }
#include "fused.h"
