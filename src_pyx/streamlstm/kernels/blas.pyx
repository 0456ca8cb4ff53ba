"""Cell equations by BLAS, float32 and float64; reference.py writes them down.

Matrices are row-major; n streams, T steps, I inputs, H units, P numbers of h. One panel of all
units (kernel.h) is the weights transposed ([I, G H], the gates side by side, then those over h),
so that a step of one stream is the fast form of gemv (y = W'x along the columns) and a batch is a
plain gemm.
"""
from cython cimport floating
from libc.math cimport exp, expf, sqrt, tanh, tanhf
from libc.string cimport memcpy

from streamlstm.kernels.kernel cimport (
    COUPLED_F, COUPLED_I, FLOAT32, FLOAT64, GRU, HARD_SIGMOID, HARD_SIGMOID6, LINEAR,
    NORM_EPSILON, RELU, SATURATION, SIGMOID, SOFTMAX, TANH, Layer, Scratch,
)
from streamlstm.kernels.products cimport gemm, gemv


cdef inline floating sigma(floating z) noexcept nogil:
    if floating is float:
        return 1 / (1 + expf(-z))
    else:
        return 1 / (1 + exp(-z))


cdef inline floating tanh_(floating z) noexcept nogil:
    if floating is float:
        return tanhf(z)
    else:
        return tanh(z)


cdef inline floating held(floating a, double bound) noexcept nogil:
    # Comparisons keep NaN; min() and max() would hide it.
    return <floating> -bound if a < -bound else <floating> bound if a > bound else a


cdef inline floating ramp(floating a) noexcept nogil:
    return 0 if a < 0 else 1 if a > 1 else a


cdef inline floating function_of(int function, floating a) noexcept nogil:
    if function == TANH:
        return tanh_(a)
    if function == SIGMOID:
        return sigma(a)
    if function == RELU:
        return 0 if a < 0 else a
    if function == HARD_SIGMOID:
        return ramp(<floating> 0.2 * a + <floating> 0.5)
    if function == HARD_SIGMOID6:
        return ramp(a / 6 + <floating> 0.5)
    return a


cdef inline floating cell_function_of(int function, floating a) noexcept nogil:
    """In a cell, what has no bound of its own saturates."""
    cdef floating y = function_of(function, a)
    return held(y, SATURATION) if function == LINEAR or function == RELU else y


cdef inline void spread_bias(
    Py_ssize_t n, Py_ssize_t width, const void* b, floating* z,
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        memcpy(z + i * width, b, width * sizeof(floating))


cdef inline void product(
    Py_ssize_t n, Py_ssize_t width, Py_ssize_t depth, const floating* a, Py_ssize_t a_stride,
    const floating* w, Py_ssize_t w_stride, floating beta, floating* out, Py_ssize_t out_stride,
) noexcept nogil:
    """out [n, width] = a [n, depth] w [depth, width] + beta out, rows at their strides."""
    if n == 1:
        gemv(width, depth, a, w, w_stride, beta, out)
    else:
        gemm(n, width, depth, a, a_stride, w, w_stride, beta, out, out_stride)


# -- LSTM ---------------------------------------------------------------------------------

cdef inline void plain_cell(
    Py_ssize_t H, const floating* z, floating* c, floating* h,
) noexcept nogil:
    """c = sigmoid(z_f) c + sigmoid(z_i) tanh(z_g); h = sigmoid(z_o) tanh(c)."""
    cdef Py_ssize_t j
    for j in range(H):
        c[j] = sigma(z[H + j]) * c[j] + sigma(z[j]) * tanh_(z[2 * H + j])
        h[j] = sigma(z[3 * H + j]) * tanh_(c[j])


cdef void finish_gate(
    const Layer* layer, int gate, int peep, int function, const floating* seen, floating* z,
) noexcept nogil:
    """One gate's sums -> its values, in place. gate: its block in z, norm and, where there is a
    norm, b; peep: its block of peepholes, none below 0; seen: the c that these look at."""
    cdef Py_ssize_t H = layer.units, j
    cdef const floating* p = <const floating*> layer.peep
    cdef const floating* norm = <const floating*> layer.norm
    cdef const floating* b = <const floating*> layer.b
    cdef double mean = 0, variance = 0, scale
    z += gate * H
    if p and peep >= 0:
        for j in range(H):
            z[j] += p[peep * H + j] * seen[j]
    if norm:
        for j in range(H):
            z[j] = held(z[j], SATURATION)
            mean += z[j]
        mean /= H
        for j in range(H):
            variance += (z[j] - mean) * (z[j] - mean)
        scale = 1 / sqrt(variance / H + NORM_EPSILON)
        for j in range(H):
            z[j] = <floating> ((z[j] - mean) * scale) * norm[gate * H + j] + b[gate * H + j]
    for j in range(H):
        z[j] = cell_function_of(function, held(z[j], layer.clip_gates))


cdef void any_cell(const Layer* layer, floating* z, floating* c, floating* h) noexcept nogil:
    """Sums [G H] in the order i, f, g, o, without a coupled gate -> new c and h."""
    cdef Py_ssize_t H = layer.units, j
    cdef int gates = 3 if layer.coupled else 4
    cdef floating* i = z
    cdef floating* f = z + (gates - 3) * H
    cdef floating* g = z + (gates - 2) * H
    cdef floating* o = z + (gates - 1) * H
    cdef floating in_j, f_j
    if layer.coupled != COUPLED_I:
        finish_gate(layer, 0, 0, layer.gate, c, z)
    if layer.coupled != COUPLED_F:
        finish_gate(layer, gates - 3, 1, layer.gate, c, z)
    finish_gate(layer, gates - 2, -1, layer.candidate, c, z)
    for j in range(H):
        in_j = 1 - f[j] if layer.coupled == COUPLED_I else i[j]
        f_j = 1 - i[j] if layer.coupled == COUPLED_F else f[j]
        c[j] = held(f_j * c[j] + in_j * g[j], layer.clip_cell)
    finish_gate(layer, gates - 1, 2, layer.gate, c, z)
    for j in range(H):
        h[j] = held(o[j] * cell_function_of(layer.output, c[j]), SATURATION)


cdef inline void lstm_step(
    const Layer* layer, Py_ssize_t n, Py_ssize_t stride, char** rows, Py_ssize_t t,
    const floating* h, Py_ssize_t h_stride, floating* z, floating* m, floating* out,
) noexcept nogil:
    """Step t of n streams, whose z and out stand `stride` steps apart. m [n, H] is scratch."""
    cdef Py_ssize_t H = layer.units, P = layer.outputs, i, j
    cdef Py_ssize_t width = (3 if layer.coupled else 4) * H
    cdef floating* to
    z += t * width
    out += t * P
    cdef const floating* w_h = <const floating*> layer.w + layer.inputs * width
    product(n, width, P, h, h_stride, w_h, width, <floating> 1, z, stride * width)
    for i in range(n):
        to = m + i * H if layer.w_p else out + i * stride * P
        if layer.plain:
            plain_cell(H, z + i * stride * width, <floating*> rows[i] + layer.c, to)
        else:
            any_cell(layer, z + i * stride * width, <floating*> rows[i] + layer.c, to)
    if not layer.w_p:
        return
    for i in range(n):
        memcpy(out + i * stride * P, layer.b_p, P * sizeof(floating))
    product(n, P, H, m, H, <const floating*> layer.w_p, P, <floating> 1, out, stride * P)
    for i in range(n):
        for j in range(P):
            out[i * stride * P + j] = held(out[i * stride * P + j], layer.clip_projection)


# -- GRU ----------------------------------------------------------------------------------

cdef inline void gru_step(
    const Layer* layer, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t t,
    const floating* h, Py_ssize_t h_stride, floating* z, floating* m, floating* out,
) noexcept nogil:
    """Step t of n streams, as lstm_step. m [n, 3H]: U h + b_n; or, in its first H, r h."""
    cdef Py_ssize_t H = layer.units, i, j
    cdef const floating* w_h = <const floating*> layer.w + layer.inputs * 3 * H
    cdef const floating* b_n = <const floating*> layer.b + 3 * H
    cdef const floating* old
    cdef floating* at
    cdef floating* mine
    z += t * 3 * H
    out += t * H
    if layer.reset_after:
        product(n, 3 * H, H, h, h_stride, w_h, 3 * H, <floating> 0, m, 3 * H)
    else:
        product(n, 2 * H, H, h, h_stride, w_h, 2 * H, <floating> 1, z, stride * 3 * H)
    for i in range(n):
        at, mine, old = z + i * stride * 3 * H, m + i * 3 * H, h + i * h_stride
        for j in range(2 * H):
            if layer.reset_after:
                at[j] += mine[j]
            at[j] = cell_function_of(layer.gate, held(at[j], layer.clip_gates))
        for j in range(H):
            if layer.reset_after:
                at[2 * H + j] += at[j] * (mine[2 * H + j] + b_n[j])
            else:
                mine[j] = held(at[j] * old[j], SATURATION)
    if not layer.reset_after:
        product(n, H, H, m, 3 * H, <const floating*> layer.w_p, H, <floating> 1, z + 2 * H,
                stride * 3 * H)
    for i in range(n):
        at, old = z + i * stride * 3 * H, h + i * h_stride
        for j in range(H):
            at[2 * H + j] = cell_function_of(
                layer.candidate, held(at[2 * H + j], layer.clip_gates))
            out[i * stride * H + j] = held(
                (1 - at[H + j]) * at[2 * H + j] + at[H + j] * old[j], SATURATION)


# -- layers -------------------------------------------------------------------------------

cdef inline void recurrent_layer(
    const Layer* layer, Py_ssize_t n, Py_ssize_t steps, char** rows,
    const floating* x, floating* h_start, floating* z, floating* m, floating* out,
) noexcept nogil:
    """The input half of all gates is one product; the recurrent half is one product per step,
    which reads h where the step before left it in `out` and adds to z in place (the strides are
    T rows)."""
    cdef Py_ssize_t P = layer.outputs, i, t
    cdef Py_ssize_t width = (3 if layer.kind == GRU or layer.coupled else 4) * layer.units
    cdef const floating* h = h_start
    cdef Py_ssize_t h_stride = P

    # z[nT, G H] = b + x[nT, I] W_x[I, G H]; behind a layer norm b comes later
    if not layer.norm:
        spread_bias[floating](n * steps, width, layer.b, z)
    product(n * steps, width, layer.inputs, x, layer.inputs, <const floating*> layer.w, width,
            <floating> (0 if layer.norm else 1), z, width)
    for i in range(n):
        memcpy(h_start + i * P, <floating*> rows[i] + layer.h, P * sizeof(floating))
    for t in range(steps):
        if layer.kind == GRU:
            gru_step(layer, n, steps, t, h, h_stride, z, m, out)
        else:
            lstm_step(layer, n, steps, rows, t, h, h_stride, z, m, out)
        h, h_stride = out + t * P, steps * P
    for i in range(n):
        memcpy(<floating*> rows[i] + layer.h, out + ((i + 1) * steps - 1) * P, P * sizeof(floating))


cdef inline void activate(
    int function, Py_ssize_t n, Py_ssize_t units, const floating* x, floating* out,
) noexcept nogil:
    cdef Py_ssize_t _i, j
    cdef floating largest
    cdef double total
    if function != SOFTMAX:
        for j in range(n * units):
            out[j] = function_of(function, x[j])
        return
    for _i in range(n):
        largest = x[0]
        for j in range(units):
            largest = max(largest, x[j])
        total = 0
        for j in range(units):
            out[j] = <floating> exp(x[j] - largest)
            total += out[j]
        for j in range(units):
            out[j] = <floating> (out[j] / total)
        x += units
        out += units


cdef inline void dense_layer(
    const Layer* layer, Py_ssize_t n, const floating* x, floating* out,
) noexcept nogil:
    """out[n, O] = function(b + x[n, I] W[I, O])."""
    spread_bias[floating](n, layer.units, layer.b, out)
    product(n, layer.units, layer.inputs, x, layer.inputs, <const floating*> layer.w,
            layer.units, <floating> 1, out, layer.units)
    if layer.function != LINEAR:
        activate(layer.function, n, layer.units, <const floating*> out, out)


# -- the rows -----------------------------------------------------------------------------

cdef int always() noexcept nogil:
    return 1


cdef inline void transpose(
    int gates, int units, int depth, const floating* w, floating* to,
) noexcept nogil:
    cdef Py_ssize_t j, k, width = gates * <Py_ssize_t> units
    for j in range(width):
        for k in range(depth):
            to[k * width + j] = w[j * depth + k]


cdef ptrdiff_t panel_bytes_32(int gates, int units, int depth) noexcept nogil:
    return <ptrdiff_t> gates * units * depth * <ptrdiff_t> sizeof(float)


cdef void pack_32(
    int gates, int units, int depth, const void* w, char* to, ptrdiff_t stride,
) noexcept nogil:
    transpose(gates, units, depth, <const float*> w, <float*> to)


cdef void recurrent_32(
    const Layer* layer, ptrdiff_t n, ptrdiff_t steps, char** rows, const void* x,
    const Scratch* scratch, void* out,
) noexcept nogil:
    recurrent_layer(layer, n, steps, rows, <const float*> x, <float*> scratch.h,
                    <float*> scratch.z, <float*> scratch.m, <float*> out)


cdef void dense_32(const Layer* layer, ptrdiff_t n, const void* x, void* out) noexcept nogil:
    dense_layer(layer, n, <const float*> x, <float*> out)


cdef void activation_32(
    int function, ptrdiff_t n, ptrdiff_t units, const void* x, void* out,
) noexcept nogil:
    activate(function, n, units, <const float*> x, <float*> out)


cdef ptrdiff_t panel_bytes_64(int gates, int units, int depth) noexcept nogil:
    return <ptrdiff_t> gates * units * depth * <ptrdiff_t> sizeof(double)


cdef void pack_64(
    int gates, int units, int depth, const void* w, char* to, ptrdiff_t stride,
) noexcept nogil:
    transpose(gates, units, depth, <const double*> w, <double*> to)


cdef void recurrent_64(
    const Layer* layer, ptrdiff_t n, ptrdiff_t steps, char** rows, const void* x,
    const Scratch* scratch, void* out,
) noexcept nogil:
    recurrent_layer(layer, n, steps, rows, <const double*> x, <double*> scratch.h,
                    <double*> scratch.z, <double*> scratch.m, <double*> out)


cdef void dense_64(const Layer* layer, ptrdiff_t n, const void* x, void* out) noexcept nogil:
    dense_layer(layer, n, <const double*> x, <double*> out)


cdef void activation_64(
    int function, ptrdiff_t n, ptrdiff_t units, const void* x, void* out,
) noexcept nogil:
    activate(function, n, units, <const double*> x, <double*> out)


blas_float32.name = blas_float64.name = b"blas"
blas_float32.own_threads = blas_float64.own_threads = True
blas_float32.supported = blas_float64.supported = always
blas_float32.arithmetic, blas_float64.arithmetic = b"f32-blas", b"f64-blas"
blas_float32.weights, blas_float64.weights = b"float32", b"float64"
blas_float32.numbers, blas_float64.numbers = FLOAT32, FLOAT64
blas_float32.panel_bytes, blas_float64.panel_bytes = panel_bytes_32, panel_bytes_64
blas_float32.pack, blas_float64.pack = pack_32, pack_64
blas_float32.recurrent, blas_float64.recurrent = recurrent_32, recurrent_64
blas_float32.dense, blas_float64.dense = dense_32, dense_64
blas_float32.activation, blas_float64.activation = activation_32, activation_64
