/* The fused kernel's source. A target's .c file defines, then includes this:
 *   VL             lanes of a vector
 *   ROWS           streams in a tile: ROWS x 4 accumulators stay in registers
 *   SPLAT(s)       s in all lanes
 *   MULADD(a,b,c)  a b + c, fused or not: this names the arithmetic class
 *   REMAINDER(d,low,r)  1 - (d + low) r to many digits, where r is 1 / d rounded
 *   MAX(a,b) MIN(a,b)  b where a lane is NaN
 *   KERNEL, NAME, ARITHMETIC, supported()
 *
 * A tile is R streams x P panels of up to 4 vectors of sums. After the loop over k the vectors
 * of a stream's panel ARE its gates for VL units, so the functions and the update of c and h
 * happen there and no gate buffer exists (cells.h).
 */
#define PANELS(units) (((units) + VL - 1) / VL)

#include "functions.h"
#include "cells.h"

/* ---- tiles ------------------------------------------------------------------------ */

#define MAX_PANELS 4
typedef vf tile[ROWS][MAX_PANELS][4];

/* acc[r][p][g] += sum over k of w[p][k][g] v[r][k], where the last gate's sum is acc[..][last].
 * No software prefetch: the panels are read front to back, and every distance tried was slower
 * than the hardware's own. */
ALWAYS void accumulate(tile acc, const float *w, ptrdiff_t panel_stride, const float *const *v,
                       int n_k, const int R, const int P, const int G, const int last) {
    for (int k = 0; k < n_k; k++) {
        UNROLL for (int p = 0; p < P; p++) {
            const float *at = w + p * panel_stride + (ptrdiff_t)k * G * VL;
            UNROLL for (int g = 0; g < G; g++) {
                vf weight = *(const vf *)(at + g * VL);
                UNROLL for (int r = 0; r < R; r++) {
                    vf *sum = &acc[r][p][g == G - 1 ? last : g];
                    *sum = MULADD(weight, SPLAT(v[r][k]), *sum);
                }
            }
        }
    }
}

/* What a tile sums up and does then; the gates of each stand below. */
enum {
    CELL_PLAIN,         /* the textbook's LSTM */
    CELL_OPTIONS,       /* any LSTM with four gates */
    CELL_COUPLED,       /* any with three */
    CELL_SUMS,          /* its sums to z only, for layer norm */
    CELL_COUPLED_SUMS,
    CELL_GRU_AFTER,     /* a whole GRU */
    CELL_GRU_BEFORE,    /* r h to m, z and n's input half to z */
    CELL_GRU_CANDIDATE, /* then n and h */
    CELLS
};

/* Gates with weights over the inputs, and over h; sums; which sum the last gate over h is. */
static const struct { int x, h, sums, last; } GATES[CELLS] = {
    [CELL_PLAIN] = {4, 4, 4, 3},     [CELL_OPTIONS] = {4, 4, 4, 3},
    [CELL_COUPLED] = {3, 3, 3, 2},   [CELL_SUMS] = {4, 4, 4, 3},
    [CELL_COUPLED_SUMS] = {3, 3, 3, 2},
    [CELL_GRU_AFTER] = {3, 3, 4, 3}, [CELL_GRU_BEFORE] = {3, 2, 3, 1},
    [CELL_GRU_CANDIDATE] = {0, 1, 1, 0},
};

typedef struct {
    const Layer *layer;
    ptrdiff_t panel;        /* the first of the tile */
    const float *x[ROWS];   /* inputs, or NULL: start from z */
    const float *h[ROWS];   /* old h, or NULL: stop at z */
    float *z[ROWS];         /* sums, four vectors a panel */
    float *m[ROWS];         /* r h of a GRU */
    float *c[ROWS];
    float *out[ROWS];       /* new h */
} cell_work;

/* Where one panel of one stream stands. */
typedef struct {
    const float *h;
    float *c, *m, *z, *out;
} places_of_panel;

ALWAYS places_of_panel panel_of(const cell_work *work, int cell, int r, ptrdiff_t panel) {
    const int halves = cell == CELL_GRU_BEFORE || cell == CELL_GRU_CANDIDATE;
    const ptrdiff_t unit = panel * VL;
    return (places_of_panel){work->h[r] + unit, work->c[r] + unit, halves ? work->m[r] + unit : 0,
                             halves ? work->z[r] + panel * 4 * VL : 0, work->out[r] + unit};
}

/* A panel's sums -> its part of the new state. */
static __attribute__((noinline)) void finish(const Layer *layer, int cell, ptrdiff_t panel, const vf *sum,
                                             places_of_panel at) {
    switch (cell) {
    case CELL_PLAIN: lstm_plain(sum, at.c, at.out); break;
    case CELL_OPTIONS: lstm_options(layer, panel, sum, 4, at.c, at.out); break;
    case CELL_COUPLED: lstm_options(layer, panel, sum, 3, at.c, at.out); break;
    case CELL_GRU_AFTER: gru_after(layer, panel, sum, at.h, at.out); break;
    case CELL_GRU_BEFORE: gru_before(layer, panel, sum, at.h, at.m, at.z); break;
    case CELL_GRU_CANDIDATE: gru_candidate(layer, panel, sum[0], load(at.z), at.h, at.out); break;
    }
}

/* finish() on the last panel, of which fewer than VL units are real. Apart: the calls of memcpy
 * would cost the others their registers. */
static __attribute__((noinline)) void finish_last(const cell_work *work, int cell, int r, ptrdiff_t panel,
                                                  const vf *sum) {
    const Layer *layer = work->layer;
    const places_of_panel at = panel_of(work, cell, r, panel);
    const int gru = layer->kind == GRU, before = cell == CELL_GRU_BEFORE;
    const size_t bytes = (layer->units - panel * VL) * sizeof(float);
    float h[VL] = {0}, c[VL] = {0}, m[VL], out[VL];
    if (gru)
        memcpy(h, at.h, bytes);
    else
        memcpy(c, at.c, bytes);
    finish(layer, cell, panel, sum, (places_of_panel){h, c, m, at.z, out});
    if (!gru)
        memcpy(at.c, c, bytes);
    memcpy(before ? at.m : at.out, before ? m : out, bytes);
}

ALWAYS void cell_tile(const cell_work *work, const int R, const int P, const int cell) {
    const Layer *layer = work->layer;
    const int candidate = cell == CELL_GRU_CANDIDATE;
    const int depth = candidate ? layer->units : layer->outputs;
    const ptrdiff_t x_numbers = (ptrdiff_t)layer->inputs * GATES[cell].x * VL;
    const ptrdiff_t panel_stride = x_numbers + (ptrdiff_t)depth * GATES[cell].h * VL;
    const float *w = (const float *)(candidate ? layer->w_p : layer->w) + work->panel * panel_stride;
    tile acc;
#define Z(r, p, g) (work->z[r] + ((work->panel + (p)) * 4 + (g)) * VL)
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int g = 0; g < GATES[cell].sums; g++) {
                if (candidate)
                    acc[r][p][g] = load(Z(r, p, 1));
                else
                    acc[r][p][g] = work->x[0] || g >= GATES[cell].x ? SPLAT(0.0f) : load(Z(r, p, g));
            }
    if (!candidate && work->x[0])
        accumulate(acc, w, panel_stride, work->x, layer->inputs, R, P, GATES[cell].x, GATES[cell].x - 1);
    if (work->h[0])
        accumulate(acc, w + x_numbers, panel_stride, candidate ? (const float *const *)work->m : work->h,
                   depth, R, P, GATES[cell].h, GATES[cell].last);
    if (!work->h[0] || cell == CELL_SUMS || cell == CELL_COUPLED_SUMS) {
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int p = 0; p < P; p++)
                UNROLL for (int g = 0; g < GATES[cell].x; g++)
                    store(Z(r, p, g), acc[r][p][g]);
        return;
    }
    UNROLL for (int p = 0; p < P; p++) {
        const ptrdiff_t panel = work->panel + p, unit = panel * VL;
        if (cell == CELL_PLAIN)
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int g = 0; g < 4; g++)
                    acc[r][p][g] += load((const float *)layer->b + (panel * 4 + g) * VL);
        UNROLL for (int r = 0; r < R; r++) {
            if (layer->units - unit < VL)
                finish_last(work, cell, r, panel, acc[r][p]);
            else if (cell == CELL_PLAIN)
                lstm_plain(acc[r][p], work->c[r] + unit, work->out[r] + unit);
            else
                finish(layer, cell, panel, acc[r][p], panel_of(work, cell, r, panel));
        }
    }
#undef Z
}

#define TILE(C, R, P) \
    static __attribute__((noinline)) void tile_##C##_##R##_##P(const cell_work *w) { cell_tile(w, R, P, C); }
#if ROWS == 6
#define TILES(C) TILE(C, 1, 1) TILE(C, 1, 2) TILE(C, 2, 1) TILE(C, 3, 1) TILE(C, 4, 1) TILE(C, 5, 1) TILE(C, 6, 1)
#define TABLE(C) [C] = {tile_##C##_1_2, tile_##C##_1_1, tile_##C##_2_1, tile_##C##_3_1, tile_##C##_4_1, tile_##C##_5_1, tile_##C##_6_1}
#elif ROWS == 3
#define TILES(C) TILE(C, 1, 1) TILE(C, 1, 2) TILE(C, 2, 1) TILE(C, 3, 1)
#define TABLE(C) [C] = {tile_##C##_1_2, tile_##C##_1_1, tile_##C##_2_1, tile_##C##_3_1}
#else
#define TILES(C) TILE(C, 1, 1) TILE(C, 1, 2) TILE(C, 2, 1)
#define TABLE(C) [C] = {tile_##C##_1_2, tile_##C##_1_1, tile_##C##_2_1}
#endif
TILES(CELL_PLAIN) TILES(CELL_OPTIONS) TILES(CELL_COUPLED) TILES(CELL_SUMS) TILES(CELL_COUPLED_SUMS)
TILES(CELL_GRU_AFTER) TILES(CELL_GRU_BEFORE) TILES(CELL_GRU_CANDIDATE)

/* Of each cell: one stream x two panels; then one panel of 1, 2, ... ROWS streams. */
static void (*const tiles[CELLS][ROWS + 1])(const cell_work *) = {
    TABLE(CELL_PLAIN), TABLE(CELL_OPTIONS), TABLE(CELL_COUPLED), TABLE(CELL_SUMS), TABLE(CELL_COUPLED_SUMS),
    TABLE(CELL_GRU_AFTER), TABLE(CELL_GRU_BEFORE), TABLE(CELL_GRU_CANDIDATE),
};

/* With one gate, four panels have the sums under way that one panel of four gates has. */
#define WIDE 4
#define WIDE_TILE(R) TILE(CELL_GRU_CANDIDATE, R, 4)
#if ROWS == 6
WIDE_TILE(1) WIDE_TILE(2) WIDE_TILE(3) WIDE_TILE(4) WIDE_TILE(5) WIDE_TILE(6)
#elif ROWS == 3
WIDE_TILE(1) WIDE_TILE(2) WIDE_TILE(3)
#else
WIDE_TILE(1) WIDE_TILE(2)
#endif
static void (*const wide_tiles[ROWS + 1])(const cell_work *) = {
    0, tile_CELL_GRU_CANDIDATE_1_4, tile_CELL_GRU_CANDIDATE_2_4,
#if ROWS >= 3
    tile_CELL_GRU_CANDIDATE_3_4,
#endif
#if ROWS == 6
    tile_CELL_GRU_CANDIDATE_4_4, tile_CELL_GRU_CANDIDATE_5_4, tile_CELL_GRU_CANDIDATE_6_4,
#endif
};

/* ---- dense layers ----------------------------------------------------------------- */

/* n rows through a matrix: x [n, inputs] -> out [n, units], `stride` apart. */
typedef struct {
    const float *w, *b;
    int inputs, units;
    int function;
    float bound;            /* of a projection's clip */
    const float *x; ptrdiff_t x_stride;
    float *out; ptrdiff_t out_stride;
} product;

typedef struct {
    const product *of;
    ptrdiff_t panel;
    const float *x[ROWS];
    float *out[ROWS];
} dense_work;

ALWAYS void dense_tile(const dense_work *work, const int R, const int P) {
    const product *of = work->of;
    const ptrdiff_t panel_stride = (ptrdiff_t)of->inputs * VL;
    tile acc;
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int p = 0; p < P; p++)
            acc[r][p][0] = SPLAT(0.0f);
    accumulate(acc, of->w + work->panel * panel_stride, panel_stride, work->x, of->inputs, R, P, 1, 0);
    UNROLL for (int p = 0; p < P; p++) {
        const ptrdiff_t unit = (work->panel + p) * VL;
        UNROLL for (int r = 0; r < R; r++) {
            vf y = function_of(of->function, acc[r][p][0] + load(of->b + unit));
            store_lanes(work->out[r] + unit, held(y, of->bound), of->units - unit);
        }
    }
}

#define DENSE_TILES(R) \
    static __attribute__((noinline)) void dense_tile_##R##_1(const dense_work *w) { dense_tile(w, R, 1); } \
    static __attribute__((noinline)) void dense_tile_##R##_4(const dense_work *w) { dense_tile(w, R, 4); }
#define CONCAT_(a, b, c) a##b##c
#define CONCAT(a, b, c) CONCAT_(a, b, c)
#define DENSE_TILES_(R) DENSE_TILES(R)
DENSE_TILES(1) DENSE_TILES_(ROWS)

static void multiply(const product *of, ptrdiff_t n) {
    const ptrdiff_t panels = PANELS(of->units);
    dense_work work = {.of = of};
    for (ptrdiff_t panel = 0; panel < panels;) {
        const int four = panels - panel >= 4;
        work.panel = panel;
        for (ptrdiff_t i = 0; i < n;) {
            const int R = n - i >= ROWS ? ROWS : 1;
            for (int r = 0; r < R; r++, i++) {
                work.x[r] = of->x + i * of->x_stride;
                work.out[r] = of->out + i * of->out_stride;
            }
            if (R == 1)
                (four ? dense_tile_1_4 : dense_tile_1_1)(&work);
            else
                (four ? CONCAT(dense_tile_, ROWS, _4) : CONCAT(dense_tile_, ROWS, _1))(&work);
        }
        panel += four ? 4 : 1;
    }
}

static void activation(int function, ptrdiff_t n, ptrdiff_t units, const void *from, void *to) {
    const float *x = from;
    float *out = to;
    if (function == SOFTMAX) {
        for (ptrdiff_t i = 0; i < n; i++)
            softmax(units, x + i * units, out + i * units);
        return;
    }
    for (ptrdiff_t i = 0; i < n * units; i += VL)
        store_lanes(out + i, function_of(function, load_lanes(x + i, n * units - i)), n * units - i);
}

static void dense(const Layer *layer, ptrdiff_t n, const void *x, void *out) {
    product of = {layer->w, layer->b, layer->inputs, layer->units, layer->function, INFINITY,
                  x, layer->inputs, out, layer->units};
    multiply(&of, n);
    if (layer->function == SOFTMAX)
        activation(SOFTMAX, n, layer->units, out, out);
}

/* ---- recurrent layers ------------------------------------------------------------- */

/* Where stream i's vectors stand at one step. */
typedef struct {
    const float *x; ptrdiff_t x_stride;  /* NULL: start from z */
    float *z; ptrdiff_t z_stride;        /* NULL: not wanted; so too m */
    const float *h; ptrdiff_t h_stride;  /* NULL: in the rows */
    float *m; ptrdiff_t m_stride;
    float *out; ptrdiff_t out_stride;
} places;

ALWAYS void place(cell_work *work, int r, ptrdiff_t i, char **rows, const places at) {
    work->x[r] = at.x ? at.x + i * at.x_stride : 0;
    if (at.z)
        work->z[r] = at.z + i * at.z_stride;
    if (rows) {
        float *row = (float *)rows[i];
        work->h[r] = at.h ? at.h + i * at.h_stride : row + work->layer->h;
        if (at.m)
            work->m[r] = at.m + i * at.m_stride;
        work->c[r] = row + work->layer->c;
        work->out[r] = at.out + i * at.out_stride;
    } else
        work->h[r] = 0;
}

/* One step (or, without rows, its input half) of n streams: panels outside, so that a panel's
 * weights stay in the first cache while the streams pass. One stream takes two panels at a
 * time, to have enough sums under way at once. */
static void pass(const Layer *layer, int cell, ptrdiff_t n, char **rows, const places at) {
    const ptrdiff_t panels = PANELS(layer->units);
    const ptrdiff_t count = (n + ROWS - 1) / ROWS;
    const int wide = cell == CELL_GRU_CANDIDATE;
    cell_work work;
    work.layer = layer;
    work.panel = 0;
    if (n == 1) {
        place(&work, 0, 0, rows, at);
        for (; wide && work.panel + WIDE <= panels; work.panel += WIDE)
            wide_tiles[1](&work);
        for (; work.panel + 2 <= panels; work.panel += 2)
            tiles[cell][0](&work);
        if (work.panel < panels)
            tiles[cell][1](&work);
        return;
    }
    while (work.panel < panels) {
        const int many = wide && work.panel + WIDE <= panels;
        for (ptrdiff_t t = 0, i = 0; t < count; t++) {
            const int R = (int)((n - i + count - t - 1) / (count - t)); /* even tiles */
            for (int r = 0; r < R; r++, i++)
                place(&work, r, i, rows, at);
            (many ? wide_tiles[R] : tiles[cell][R])(&work);
        }
        work.panel += many ? WIDE : 1;
    }
}

static int cell_of(const Layer *layer) {
    if (layer->kind == GRU)
        return layer->reset_after ? CELL_GRU_AFTER : CELL_GRU_BEFORE;
    if (layer->norm)
        return layer->coupled ? CELL_COUPLED_SUMS : CELL_SUMS;
    return layer->plain ? CELL_PLAIN : layer->coupled ? CELL_COUPLED : CELL_OPTIONS;
}

/* One step of n streams, from sums to h; m [n, units] is scratch. */
static void step(const Layer *layer, int cell, ptrdiff_t n, char **rows, places at, float *m) {
    const ptrdiff_t H = layer->units;
    product of = {layer->w_p, layer->b_p, layer->units, layer->outputs, LINEAR,
                  (float)layer->clip_projection, m, H, at.out, at.out_stride};
    const int projected = layer->kind == LSTM && layer->w_p;
    if (projected)
        at.out = m, at.out_stride = H;
    if (cell == CELL_GRU_BEFORE)
        at.m = m, at.m_stride = H;
    pass(layer, cell, n, rows, at);
    if (cell == CELL_GRU_BEFORE)
        pass(layer, CELL_GRU_CANDIDATE, n, rows, at);
    if (layer->norm)
        for (ptrdiff_t i = 0; i < n; i++)
            lstm_normed(layer, at.z + i * at.z_stride, (float *)rows[i] + layer->c, at.out + i * at.out_stride);
    if (projected)
        multiply(&of, n);
}

/* The input half ahead of time pays for fewer streams than a tile takes, and from some units
 * on: below, the next step's x half fills the wait for the functions. */
#define AHEAD_STREAMS_MAX 3
#define AHEAD_UNITS_MIN 33

static void recurrent(const Layer *layer, ptrdiff_t n, ptrdiff_t steps, char **rows,
                      const void *from, const Scratch *scratch, void *to) {
    const float *x = from;
    float *z = scratch->z, *out = to;
    const ptrdiff_t I = layer->inputs, O = layer->outputs, Z = PANELS(layer->units) * 4 * VL;
    const int cell = cell_of(layer);
    const int ahead = steps > 1 && n <= AHEAD_STREAMS_MAX && layer->units >= AHEAD_UNITS_MIN;
    if (ahead) { /* the input half of all steps, ROWS steps a tile */
        places at = {.x = x, .x_stride = I, .z = z, .z_stride = Z};
        pass(layer, cell, n * steps, 0, at);
    }
    const int kept = ahead || layer->norm || cell == CELL_GRU_BEFORE;
    places at = {.z_stride = steps * Z, .out_stride = steps * O};
    for (ptrdiff_t t = 0; t < steps; t++) {
        at.z = kept ? z + t * Z : 0;
        at.out = out + t * O;
        if (!ahead)
            at.x = x + t * I, at.x_stride = steps * I;
        step(layer, cell, n, rows, at, scratch->m);
        at.h = at.out, at.h_stride = steps * O;
    }
    for (ptrdiff_t i = 0; i < n; i++)
        memcpy((float *)rows[i] + layer->h, out + ((i + 1) * steps - 1) * O, O * sizeof(float));
}

static void exponential(ptrdiff_t n, const void *from, void *to) {
    const float *x = from;
    float *y = to;
    for (ptrdiff_t i = 0; i < n; i += VL)
        store_lanes(y + i, exp_of(load_lanes(x + i, n - i)), n - i);
}

/* ---- the row ---------------------------------------------------------------------- */

static ptrdiff_t panel_bytes(int gates, int units, int depth) {
    (void)units;
    return (ptrdiff_t)depth * gates * VL * (ptrdiff_t)sizeof(float);
}

static void pack(int gates, int units, int depth, const void *from, char *to, ptrdiff_t stride) {
    const float *w = from;
    for (ptrdiff_t panel = 0; panel < PANELS(units); panel++, to += stride)
        for (int k = 0; k < depth; k++)
            for (int g = 0; g < gates; g++)
                for (int lane = 0; lane < VL; lane++) {
                    const ptrdiff_t unit = panel * VL + lane;
                    ((float *)to)[((ptrdiff_t)k * gates + g) * VL + lane] =
                        unit < units ? w[(g * (ptrdiff_t)units + unit) * depth + k] : 0;
                }
}

const Kernel KERNEL = {
    .name = NAME, .arithmetic = ARITHMETIC, .weights = "float32", .numbers = FLOAT32, .lanes = VL,
    .same_bits = 1, .supported = supported, .panel_bytes = panel_bytes, .pack = pack,
    .recurrent = recurrent, .dense = dense, .activation = activation, .exponential = exponential,
};
