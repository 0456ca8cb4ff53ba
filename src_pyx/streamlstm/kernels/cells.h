/* The cells on vectors: a panel's finished sums -> its c and h. reference.py has the equations.
 * The bias comes after the sums (kernel.h).
 */

/* The textbook's LSTM, each product of two functions with one division. Where |c| is large the
 * sigmoid's error is all of h's: so h = q + q (1 - (d + low) r), which takes back what the sum
 * 1 + e^-o and 1 / d lost. z has its bias already, added for all streams of a tile at once. */
ALWAYS void lstm_plain(const vf z[4], float *c, float *h) {
    exp_parts g = exp_fold(z[2]);
    vf in = with_sign(one_minus(g), z[2]) / (one_plus(exp_minus(z[0])) * one_plus(g));
    vf next = load(c) / one_plus(exp_minus(z[1])) + in;
    store(c, next);
    exp_parts t = exp_fold(next), o = exp_minus(z[3]);
    vf d_t = one_plus(t), d_o = one_plus(o);
    vf d = d_o * d_t, low = one_plus_low(o, d_o) * d_t;
    vf r = SPLAT(1.0f) / d, q = with_sign(one_minus(t), next) * r;
    store(h, MULADD(REMAINDER(d, low, r), q, q));
}

/* function(sum + peep * seen + b), b and peep of one gate; peep may be NULL. */
ALWAYS vf gate(const Layer *layer, int function, vf sum, const float *b, const float *peep, vf seen) {
    if (peep)
        sum = MULADD(load(peep), seen, sum);
    return cell_function_of(function, held(sum + load(b), (float)layer->clip_gates));
}

/* G sums in the order i, f, g, o, without a coupled one; old c -> new c. */
ALWAYS vf new_c(const Layer *layer, ptrdiff_t panel, const vf *sum, const int G, const float *peep, vf old) {
    const float *b = (const float *)layer->b + panel * G * VL;
    vf i, f;
    if (G == 4) {
        i = gate(layer, layer->gate, sum[0], b, peep, old);
        f = gate(layer, layer->gate, sum[1], b + VL, peep ? peep + VL : 0, old);
    } else if (layer->coupled == COUPLED_F) {
        i = gate(layer, layer->gate, sum[0], b, peep, old);
        f = SPLAT(1.0f) - i;
    } else {
        f = gate(layer, layer->gate, sum[0], b, peep ? peep + VL : 0, old);
        i = SPLAT(1.0f) - f;
    }
    vf g = gate(layer, layer->candidate, sum[G - 2], b + (G - 2) * VL, 0, old);
    return held(MULADD(f, old, i * g), (float)layer->clip_cell);
}

/* The sum of gate o; new c -> h before any projection. */
ALWAYS vf new_h(const Layer *layer, ptrdiff_t panel, vf sum, const int G, const float *peep, vf c) {
    const float *b = (const float *)layer->b + (panel * G + G - 1) * VL;
    vf o = gate(layer, layer->gate, sum, b, peep ? peep + 2 * VL : 0, c);
    return held(o * cell_function_of(layer->output, c), (float)SATURATION);
}

ALWAYS void lstm_options(const Layer *layer, ptrdiff_t panel, const vf *sum, const int G, float *c, float *h) {
    const float *peep = layer->peep ? (const float *)layer->peep + panel * 3 * VL : 0;
    vf next = new_c(layer, panel, sum, G, peep, load(c));
    store(c, next);
    store(h, new_h(layer, panel, sum[G - 1], G, peep, next));
}

/* h' = (1 - z) n + z h. As n + z (h - n) it would round at the size of n, also where z is 1. */
ALWAYS vf gru_h(vf z, vf n, vf old) {
    return held(MULADD(z, old, (SPLAT(1.0f) - z) * n), (float)SATURATION);
}

/* Sums of r, z, n over the inputs, n over h. */
ALWAYS void gru_after(const Layer *layer, ptrdiff_t panel, const vf sum[4], const float *old, float *h) {
    const float *b = (const float *)layer->b + panel * 4 * VL;
    const float clip = (float)layer->clip_gates;
    vf r = gate(layer, layer->gate, sum[0], b, 0, sum[0]);
    vf z = gate(layer, layer->gate, sum[1], b + VL, 0, sum[1]);
    vf n = MULADD(r, sum[3] + load(b + 3 * VL), sum[2] + load(b + 2 * VL));
    store(h, gru_h(z, cell_function_of(layer->candidate, held(n, clip)), load(old)));
}

/* Sums of r, z, and of n over the inputs -> r h, and z and n's sum for gru_candidate. */
ALWAYS void gru_before(const Layer *layer, ptrdiff_t panel, const vf sum[3], const float *old, float *m, float *kept) {
    const float *b = (const float *)layer->b + panel * 4 * VL;
    vf r = gate(layer, layer->gate, sum[0], b, 0, sum[0]);
    store(m, held(r * load(old), (float)SATURATION));
    store(kept, gate(layer, layer->gate, sum[1], b + VL, 0, sum[1]));
    store(kept + VL, sum[2]);
}

ALWAYS void gru_candidate(const Layer *layer, ptrdiff_t panel, vf sum, vf z, const float *old, float *h) {
    vf n = gate(layer, layer->candidate, sum, (const float *)layer->b + (panel * 4 + 2) * VL, 0, sum);
    store(h, gru_h(z, n, load(old)));
}

/* Layer norm of one gate's sums z[panel][4][VL], in place, before its bias. In the order of the
 * units and in double, so that lanes do not show. */
static void normalise(const Layer *layer, float *z, int gate, const int G) {
    const int H = layer->units;
    const float *norm = (const float *)layer->norm + gate * VL;
    double mean = 0, variance = 0;
#define AT(a, per_panel, u) (a)[(u) / VL * (per_panel) * VL + (u) % VL]
    for (ptrdiff_t panel = 0; panel < PANELS(H); panel++) {
        float *at = z + (panel * 4 + gate) * VL;
        store(at, held(load(at), (float)SATURATION));
    }
    for (int u = 0; u < H; u++)
        mean += AT(z + gate * VL, 4, u);
    mean /= H;
    for (int u = 0; u < H; u++) {
        const double off = AT(z + gate * VL, 4, u) - mean;
        variance += off * off;
    }
    const double scale = 1 / __builtin_sqrt(variance / H + NORM_EPSILON);
    for (int u = 0; u < H; u++) {
        float *at = &AT(z + gate * VL, 4, u);
        *at = (float)((*at - mean) * scale) * AT(norm, G, u);
    }
#undef AT
}

/* Peepholes of one gate added to its sums: z += p c. */
static void look(const Layer *layer, float *z, int gate, int peep, const float *c) {
    for (ptrdiff_t panel = 0; panel < PANELS(layer->units); panel++) {
        float *at = z + (panel * 4 + gate) * VL;
        const float *p = (const float *)layer->peep + (panel * 3 + peep) * VL;
        store(at, MULADD(load(p), load_lanes(c + panel * VL, layer->units - panel * VL), load(at)));
    }
}

/* One stream's sums z -> c and h, with layer norm: gate by gate, for it needs all units. */
static void lstm_normed(const Layer *layer, float *z, float *c, float *h) {
    const int G = layer->coupled ? 3 : 4;
    if (layer->peep && layer->coupled != COUPLED_I)
        look(layer, z, 0, 0, c);
    if (layer->peep && layer->coupled != COUPLED_F)
        look(layer, z, G - 3, 1, c);
    for (int k = 0; k < G - 1; k++)
        normalise(layer, z, k, G);
    for (ptrdiff_t panel = 0; panel < PANELS(layer->units); panel++) {
        const ptrdiff_t unit = panel * VL, lanes = layer->units - unit;
        vf sum[4];
        for (int k = 0; k < G; k++)
            sum[k] = load(z + (panel * 4 + k) * VL);
        vf old = load_lanes(c + unit, lanes);
        store_lanes(c + unit, G == 4 ? new_c(layer, panel, sum, 4, 0, old) : new_c(layer, panel, sum, 3, 0, old), lanes);
    }
    if (layer->peep)
        look(layer, z, G - 1, 2, c);
    normalise(layer, z, G - 1, G);
    for (ptrdiff_t panel = 0; panel < PANELS(layer->units); panel++) {
        const ptrdiff_t unit = panel * VL, lanes = layer->units - unit;
        vf sum = load(z + (panel * 4 + G - 1) * VL);
        store_lanes(h + unit, new_h(layer, panel, sum, G, 0, load_lanes(c + unit, lanes)), lanes);
    }
}
