/* Vectors and the functions of their lanes; the target's macros are fused.h's.
 */
typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef float vf_any __attribute__((vector_size(4 * VL), aligned(4), may_alias));

#define ALWAYS static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

ALWAYS vf load(const float *p) { return (vf)*(const vf_any *)p; }
ALWAYS void store(float *p, vf a) { *(vf_any *)p = (vf_any)a; }

/* The same of the last panel, of which only `lanes` are real. */
ALWAYS vf load_lanes(const float *p, ptrdiff_t lanes) {
    if (lanes >= VL)
        return load(p);
    vf a = {0};
    memcpy(&a, p, lanes * sizeof(float));
    return a;
}
ALWAYS void store_lanes(float *p, vf a, ptrdiff_t lanes) {
    if (lanes >= VL)
        store(p, a);
    else
        memcpy(p, &a, lanes * sizeof(float));
}

/* e^y = s (1 + p): y = n ln2 + r, |r| <= ln2 / 2, s = 2^n, p = e^r - 1 = r + r^2 q(r).
 * q is the polynomial of degree 4 that makes the largest error of p, relative to r, smallest
 * on that interval (bench/fit_exp.py: 1.3e-8). Arguments are clamped to where s and 1 + e^y
 * stay normal numbers; NaN passes through. ln2 is split so that n * LN2_HIGH is exact.
 */
#define EXP_MAX 87.0f
#define LN2_HIGH 0.693145751953125f
#define LN2_LOW 1.42860682030941723212e-6f

typedef struct { vf s, p; } exp_parts;

ALWAYS vf magnitude(vf a) { return (vf)((vi)a & 0x7FFFFFFF); }

/* e^(scale a) for |scale a| <= EXP_MAX. scale is a power of two, so that scale * a is exact
 * and need not be waited for. */
ALWAYS exp_parts exp_scaled(vf a, float scale) {
    /* 1.5 * 2^23 rounds; with 127 it leaves s's exponent n + 127 in the low bits. */
    const vf magic = SPLAT(12582912.0f + 127);
    vf t = MULADD(a, SPLAT(scale * 1.44269504088896341f), magic);
    vf n = t - magic;
    vf r = MULADD(n, SPLAT(-LN2_HIGH), SPLAT(scale) * a);
    r = MULADD(n, SPLAT(-LN2_LOW), r);
    vf r2 = r * r;
    vf low = MULADD(SPLAT(0.16666542793836775f), r, SPLAT(0.500000006208712f));
    vf high = MULADD(SPLAT(0.008366610603940838f), r, SPLAT(0.04166628139947265f));
    vf q = MULADD(MULADD(SPLAT(0.0013946496940879887f), r2, high), r2, low);
    exp_parts e = {(vf)((vi)t << 23), MULADD(r2, q, r)};
    return e;
}

ALWAYS vf clamp(vf a) { return MIN(SPLAT(EXP_MAX), MAX(SPLAT(-EXP_MAX), a)); }
ALWAYS exp_parts exp_minus(vf z) { return exp_scaled(clamp(z), -1.0f); }

/* e^(-2|z|) */
ALWAYS exp_parts exp_fold(vf z) {
    return exp_scaled(MIN(SPLAT(EXP_MAX / 2), magnitude(z)), -2.0f);
}

ALWAYS vf one_plus(exp_parts e) { return MULADD(e.s, e.p, e.s + SPLAT(1.0f)); }
/* What the rounding of sum = one_plus(e) took away. */
ALWAYS vf one_plus_low(exp_parts e, vf sum) { return MULADD(e.s, e.p, e.s + SPLAT(1.0f) - sum); }
ALWAYS vf one_minus(exp_parts e) { return MULADD(-e.s, e.p, SPLAT(1.0f) - e.s); }
ALWAYS vf with_sign(vf a, vf sign) { return (vf)((vi)a | ((vi)sign & (int32_t)0x80000000)); }

/* sigmoid(z) = 1 / (1 + e^-z);  tanh(z) = sign(z) (1 - e) / (1 + e), e = e^(-2|z|) */
ALWAYS vf sigmoid_of(vf z) { return SPLAT(1.0f) / one_plus(exp_minus(z)); }
ALWAYS vf tanh_of(vf z) {
    exp_parts e = exp_fold(z);
    return with_sign(one_minus(e) / one_plus(e), z);
}


/* NaN passes through. */
ALWAYS vf held(vf a, float bound) { return MIN(SPLAT(bound), MAX(SPLAT(-bound), a)); }
ALWAYS vf ramp(vf a, float slope) {
    return MIN(SPLAT(1.0f), MAX(SPLAT(0.0f), MULADD(a, SPLAT(slope), SPLAT(0.5f))));
}

ALWAYS vf function_of(int function, vf a) {
    switch (function) {
    case TANH: return tanh_of(a);
    case SIGMOID: return sigmoid_of(a);
    case RELU: return MAX(SPLAT(0.0f), a);
    case HARD_SIGMOID: return ramp(a, 0.2f);
    case HARD_SIGMOID6: return ramp(a, 1.0f / 6.0f);
    default: return a;
    }
}

/* In a cell, what has no bound of its own saturates. */
ALWAYS vf cell_function_of(int function, vf a) {
    vf y = function_of(function, a);
    return function == LINEAR || function == RELU ? held(y, (float)SATURATION) : y;
}

ALWAYS vf exp_of(vf a) {
    exp_parts e = exp_scaled(clamp(a), 1.0f);
    return MULADD(e.s, e.p, e.s);
}

/* e^(x - largest) over their sum, which is taken in the numbers' order: lanes do not show. */
static void softmax(ptrdiff_t n, const float *x, float *y) {
    float largest = x[0];
    for (ptrdiff_t i = 1; i < n; i++)
        largest = x[i] > largest ? x[i] : largest;
    for (ptrdiff_t i = 0; i < n; i += VL)
        store_lanes(y + i, exp_of(load_lanes(x + i, n - i) - SPLAT(largest)), n - i);
    double sum = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        sum += y[i];
    for (ptrdiff_t i = 0; i < n; i++)
        y[i] = (float)(y[i] / sum);
}
