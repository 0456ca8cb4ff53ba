/* The fused kernel's source. A target's .c file defines, then includes this:
 *   VL             lanes of a vector
 *   ROWS           streams in a tile: ROWS x 4 accumulators stay in registers
 *   SPLAT(s)       s in all lanes
 *   MULADD(a,b,c)  a b + c, fused or not: this names the arithmetic class
 *   REMAINDER(d,low,r)  1 - (d + low) r to many digits, where r is 1 / d rounded
 *   MAX(a,b) MIN(a,b)  b where a lane is NaN
 *   KERNEL, ARITHMETIC
 *
 * A tile is R streams x P panels of G vectors. After the loop over k the four vectors
 * of a stream's panel ARE its i, f, g, o for VL units, so the activations and the
 * update of c and h happen there and no gate buffer exists.
 */
typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef float vf_any __attribute__((vector_size(4 * VL), aligned(4), may_alias));

#define ALWAYS static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define PANELS(units) (((units) + VL - 1) / VL)

ALWAYS vf load(const float *p) { return (vf)*(const vf_any *)p; }
ALWAYS void store(float *p, vf a) { *(vf_any *)p = (vf_any)a; }

/* ---- activations ------------------------------------------------------------------
 * e^y = s (1 + p): y = n ln2 + r, |r| <= ln2 / 2, s = 2^n, p = e^r - 1 = r + r^2 q(r).
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

/* c' = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c'), each product of two
 * activations with one division. Where |c| is large the sigmoid's error is all of h's: so
 * h = q + q (1 - (d + low) r), which takes back what the sum 1 + e^-o and 1 / d lost. */
ALWAYS void cell(const vf gate[4], float *c, float *h) {
    exp_parts g = exp_fold(gate[2]);
    vf in = with_sign(one_minus(g), gate[2]) / (one_plus(exp_minus(gate[0])) * one_plus(g));
    vf next = load(c) / one_plus(exp_minus(gate[1])) + in;
    store(c, next);
    exp_parts t = exp_fold(next), o = exp_minus(gate[3]);
    vf d_t = one_plus(t), d_o = one_plus(o);
    vf d = d_o * d_t, low = one_plus_low(o, d_o) * d_t;
    vf r = SPLAT(1.0f) / d, q = with_sign(one_minus(t), next) * r;
    store(h, MULADD(REMAINDER(d, low, r), q, q));
}

/* cell() on the last panel, of which only `units` lanes are real. */
static void cell_tail(const vf gate[4], float *c, float *h, int units) {
    float c_lanes[VL] = {0}, h_lanes[VL];
    memcpy(c_lanes, c, units * sizeof(float));
    cell(gate, c_lanes, h_lanes);
    memcpy(c, c_lanes, units * sizeof(float));
    memcpy(h, h_lanes, units * sizeof(float));
}

/* ---- tiles ------------------------------------------------------------------------ */

#define MAX_PANELS 4
typedef vf tile[ROWS][MAX_PANELS][4];

/* acc[r][p][g] += sum over k of w[p][k][g] v[r][k]. No software prefetch: the panels are
 * read front to back, and every distance tried was slower than the hardware's own. */
ALWAYS void accumulate(tile acc, const float *w, ptrdiff_t panel_stride, const float *const *v,
                       int n_k, const int R, const int P, const int G) {
    for (int k = 0; k < n_k; k++) {
        UNROLL for (int p = 0; p < P; p++) {
            const float *at = w + p * panel_stride + (ptrdiff_t)k * G * VL;
            UNROLL for (int g = 0; g < G; g++) {
                vf weight = *(const vf *)(at + g * VL);
                UNROLL for (int r = 0; r < R; r++)
                    acc[r][p][g] = MULADD(weight, SPLAT(v[r][k]), acc[r][p][g]);
            }
        }
    }
}

typedef struct {
    const fused_layer *layer;
    ptrdiff_t panel;        /* the first of the tile */
    const float *x[ROWS];   /* inputs, or NULL: start from z */
    const float *h[ROWS];   /* old h, or NULL: stop at z */
    float *z[ROWS];
    float *c[ROWS];
    float *out[ROWS];       /* new h */
} lstm_work;

ALWAYS void lstm_tile(const lstm_work *work, const int R, const int P) {
    const fused_layer *layer = work->layer;
    const int depth = layer->inputs + layer->units;
    const ptrdiff_t panel_stride = (ptrdiff_t)depth * 4 * VL;
    const float *w = layer->w + work->panel * panel_stride;
    const ptrdiff_t first = work->panel * 4 * VL; /* in b and z */
    tile acc;
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int g = 0; g < 4; g++)
                acc[r][p][g] = work->x[0] ? SPLAT(0.0f) : load(work->z[r] + first + (p * 4 + g) * VL);
    if (work->x[0])
        accumulate(acc, w, panel_stride, work->x, layer->inputs, R, P, 4);
    if (!work->h[0]) {
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int p = 0; p < P; p++)
                UNROLL for (int g = 0; g < 4; g++)
                    store(work->z[r] + first + (p * 4 + g) * VL, acc[r][p][g]);
        return;
    }
    accumulate(acc, w + (ptrdiff_t)layer->inputs * 4 * VL, panel_stride, work->h, layer->units, R, P, 4);
    UNROLL for (int p = 0; p < P; p++) {
        const ptrdiff_t unit = (work->panel + p) * VL;
        const int left = layer->units - (int)unit;
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int g = 0; g < 4; g++)
                acc[r][p][g] += load(layer->b + unit * 4 + g * VL);
        UNROLL for (int r = 0; r < R; r++) {
            if (left >= VL)
                cell(acc[r][p], work->c[r] + unit, work->out[r] + unit);
            else
                cell_tail(acc[r][p], work->c[r] + unit, work->out[r] + unit, left);
        }
    }
}

#define TILE(R, P) static __attribute__((noinline)) void lstm_tile_##R##_##P(const lstm_work *w) { lstm_tile(w, R, P); }
TILE(1, 1) TILE(1, 2) TILE(2, 1)
#if ROWS >= 3
TILE(3, 1)
#endif
#if ROWS >= 6
TILE(4, 1) TILE(5, 1) TILE(6, 1)
#endif

static void (*const lstm_tiles[])(const lstm_work *) = {
    0, lstm_tile_1_1, lstm_tile_2_1,
#if ROWS >= 3
    lstm_tile_3_1,
#endif
#if ROWS >= 6
    lstm_tile_4_1, lstm_tile_5_1, lstm_tile_6_1,
#endif
};

/* Where stream i's vectors stand at one step. */
typedef struct {
    const float *x; ptrdiff_t x_stride;
    float *z; ptrdiff_t z_stride;
    const float *h; ptrdiff_t h_stride;  /* NULL: in the rows */
    float *out; ptrdiff_t out_stride;
} places;

/* A step of one stream: two panels at a time, to have enough sums under way at once. */
ALWAYS void lstm_single(lstm_work *work, ptrdiff_t panels) {
    for (work->panel = 0; work->panel + 2 <= panels; work->panel += 2)
        lstm_tile_1_2(work);
    if (work->panel < panels)
        lstm_tile_1_1(work);
}

/* One step (or one half of it) of n streams: panels outside, so that a panel's weights
 * stay in the first cache while the streams pass. */
static void lstm_pass(const fused_layer *layer, ptrdiff_t n, char **rows, places at) {
    const ptrdiff_t panels = PANELS(layer->units);
    const ptrdiff_t tiles = (n + ROWS - 1) / ROWS;
    lstm_work work = {.layer = layer};
    for (work.panel = 0; work.panel < panels; work.panel++) {
        for (ptrdiff_t t = 0, i = 0; t < tiles; t++) {
            const int R = (int)((n - i + tiles - t - 1) / (tiles - t)); /* even tiles */
            for (int r = 0; r < R; r++, i++) {
                work.x[r] = at.x ? at.x + i * at.x_stride : 0;
                work.z[r] = at.z ? at.z + i * at.z_stride : 0;
                if (rows) {
                    float *row = (float *)rows[i];
                    work.h[r] = at.h ? at.h + i * at.h_stride : row + layer->h;
                    work.c[r] = row + layer->c;
                    work.out[r] = at.out + i * at.out_stride;
                }
            }
            lstm_tiles[R](&work);
        }
    }
}

/* The input half ahead of time pays for fewer streams than a tile takes, and from some units
 * on: below, the next step's x half fills the wait for the activations. */
#define AHEAD_STREAMS_MAX 3
#define AHEAD_UNITS_MIN 33

static void lstm(const fused_layer *layer, ptrdiff_t n, ptrdiff_t steps, char **rows,
                 const float *x, float *z, float *out) {
    const ptrdiff_t I = layer->inputs, H = layer->units, Z = PANELS(H) * 4 * VL;
    const int ahead = steps > 1 && n <= AHEAD_STREAMS_MAX && H >= AHEAD_UNITS_MIN;
    if (ahead) /* the input half of all steps, ROWS steps a tile */
        lstm_pass(layer, n * steps, 0, (places){.x = x, .x_stride = I, .z = z, .z_stride = Z});
    if (n == 1) {
        float *row = (float *)rows[0];
        lstm_work work = {.layer = layer, .h = {row + layer->h}, .c = {row + layer->c}};
        for (ptrdiff_t t = 0; t < steps; t++) {
            work.x[0] = ahead ? 0 : x + t * I;
            work.z[0] = z + t * Z;
            work.out[0] = out + t * H;
            lstm_single(&work, PANELS(H));
            work.h[0] = work.out[0];
        }
    } else {
        for (ptrdiff_t t = 0; t < steps; t++) {
            places at = {.out = out + t * H, .out_stride = steps * H};
            if (t)
                at.h = out + (t - 1) * H, at.h_stride = steps * H;
            if (ahead)
                at.z = z + t * Z, at.z_stride = steps * Z;
            else
                at.x = x + t * I, at.x_stride = steps * I;
            lstm_pass(layer, n, rows, at);
        }
    }
    for (ptrdiff_t i = 0; i < n; i++)
        memcpy((float *)rows[i] + layer->h, out + ((i + 1) * steps - 1) * H, H * sizeof(float));
}

/* ---- dense layers ----------------------------------------------------------------- */

ALWAYS vf activate(int activation, vf a) {
    switch (activation) {
    case 1: return tanh_of(a);
    case 2: return sigmoid_of(a);
    case 3: return MAX(SPLAT(0.0f), a);
    default: return a;
    }
}

typedef struct {
    const fused_layer *layer;
    ptrdiff_t panel;
    const float *x[ROWS];
    float *out[ROWS];
} dense_work;

ALWAYS void dense_tile(const dense_work *work, const int R, const int P) {
    const fused_layer *layer = work->layer;
    const ptrdiff_t panel_stride = (ptrdiff_t)layer->inputs * VL;
    tile acc;
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int p = 0; p < P; p++)
            acc[r][p][0] = SPLAT(0.0f);
    accumulate(acc, layer->w + work->panel * panel_stride, panel_stride, work->x, layer->inputs, R, P, 1);
    UNROLL for (int p = 0; p < P; p++) {
        const ptrdiff_t unit = (work->panel + p) * VL;
        const ptrdiff_t left = layer->units - unit;
        UNROLL for (int r = 0; r < R; r++) {
            vf y = activate(layer->activation, acc[r][p][0] + load(layer->b + unit));
            if (left >= VL)
                store(work->out[r] + unit, y);
            else
                memcpy(work->out[r] + unit, &y, left * sizeof(float));
        }
    }
}

#define DENSE(R) \
    static __attribute__((noinline)) void dense_tile_##R##_1(const dense_work *w) { dense_tile(w, R, 1); } \
    static __attribute__((noinline)) void dense_tile_##R##_4(const dense_work *w) { dense_tile(w, R, 4); }
#define CONCAT_(a, b, c) a##b##c
#define CONCAT(a, b, c) CONCAT_(a, b, c)
#define DENSE_(R) DENSE(R)
DENSE(1) DENSE_(ROWS)

static void dense(const fused_layer *layer, ptrdiff_t n, const float *x, float *out) {
    const ptrdiff_t panels = PANELS(layer->units);
    dense_work work = {.layer = layer};
    for (ptrdiff_t panel = 0; panel < panels;) {
        const int four = panels - panel >= 4;
        work.panel = panel;
        for (ptrdiff_t i = 0; i < n;) {
            const int R = n - i >= ROWS ? ROWS : 1;
            for (int r = 0; r < R; r++, i++) {
                work.x[r] = x + i * layer->inputs;
                work.out[r] = out + i * layer->units;
            }
            if (R == 1)
                (four ? dense_tile_1_4 : dense_tile_1_1)(&work);
            else
                (four ? CONCAT(dense_tile_, ROWS, _4) : CONCAT(dense_tile_, ROWS, _1))(&work);
        }
        panel += four ? 4 : 1;
    }
}

static void apply(int function, ptrdiff_t n, const float *x, float *y) {
    float in[VL], out[VL];
    for (ptrdiff_t i = 0; i < n; i += VL) {
        const ptrdiff_t left = n - i < VL ? n - i : VL;
        memset(in, 0, sizeof in);
        memcpy(in, x + i, left * sizeof(float));
        exp_parts e = exp_scaled(clamp(load(in)), 1.0f);
        store(out, function == 0 ? MULADD(e.s, e.p, e.s) : function == 1 ? tanh_of(load(in)) : sigmoid_of(load(in)));
        memcpy(y + i, out, left * sizeof(float));
    }
}

static const fused_kernel KERNEL = {ARITHMETIC, VL, lstm, dense, apply};
