"""Cell equations by BLAS, float32 and float64.

Matrices are row-major; n streams, T steps, I inputs, H units. Weights are stored
transposed ([I, 4H], gates i, f, g, o side by side), so that a step of one stream is
the fast form of gemv (y = W'x along the columns) and a batch is a plain gemm.

The LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000):

    i, f, o = sigmoid(W x + U h + b)    g = tanh(W x + U h + b)
    c' = f c + i g                      h' = o tanh(c')
"""
from cython cimport floating
from libc.math cimport exp, expf, tanh, tanhf
from libc.string cimport memcpy

from streamlstm._blas cimport gemm, gemv


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


cdef inline void gates(
    Py_ssize_t H, const floating* z, floating* c, floating* h,
) noexcept nogil:
    """c = sigmoid(z_f) c + sigmoid(z_i) tanh(z_g); h = sigmoid(z_o) tanh(c)."""
    cdef Py_ssize_t j
    for j in range(H):
        c[j] = sigma(z[H + j]) * c[j] + sigma(z[j]) * tanh_(z[2 * H + j])
        h[j] = sigma(z[3 * H + j]) * tanh_(c[j])


cdef inline void spread_bias(
    Py_ssize_t n, Py_ssize_t width, const void* b, floating* z,
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        memcpy(z + i * width, b, width * sizeof(floating))


cdef void lstm_layer(
    const Layer* layer, Py_ssize_t n, Py_ssize_t steps, char** rows,
    const floating* x, floating* h_start, floating* z, floating* out,
) noexcept nogil:
    """T steps of n streams: x [n, T, I] -> out [n, T, H]; h and c in `rows` move on.

    z [n, T, 4H] and h_start [n, H] are scratch. The input half of all gates is one
    product; the recurrent half is one product per step, which reads h where the step
    before left it in `out` and adds to z in place (the strides are T rows).
    """
    cdef Py_ssize_t H = layer.units, i, t
    cdef const floating* h
    cdef int h_stride
    cdef floating* row

    # z[nT, 4H] = b + x[nT, I] W_x[I, 4H]
    spread_bias(n * steps, 4 * H, layer.b, z)
    if n * steps == 1:
        gemv(4 * H, layer.inputs, x, <floating*> layer.w_x, 4 * H, <floating> 1, z)
    else:
        gemm(n * steps, 4 * H, layer.inputs, x, layer.inputs, <floating*> layer.w_x, 4 * H,
             <floating> 1, z, 4 * H)

    for i in range(n):
        memcpy(h_start + i * H, <floating*> rows[i] + layer.h, H * sizeof(floating))
    for t in range(steps):
        # z[n, 4H] += h[n, H] W_h[H, 4H]
        h = h_start if t == 0 else out + (t - 1) * H
        h_stride = H if t == 0 else steps * H
        if n == 1:
            gemv(4 * H, H, h, <floating*> layer.w_h, 4 * H, <floating> 1, z + t * 4 * H)
        else:
            gemm(n, 4 * H, H, h, h_stride, <floating*> layer.w_h, 4 * H,
                 <floating> 1, z + t * 4 * H, steps * 4 * H)
        for i in range(n):
            gates(H, z + (i * steps + t) * 4 * H, <floating*> rows[i] + layer.c,
                  out + (i * steps + t) * H)
    for i in range(n):
        row = <floating*> rows[i]
        memcpy(row + layer.h, out + ((i + 1) * steps - 1) * H, H * sizeof(floating))


cdef void dense_layer(
    const Layer* layer, Py_ssize_t n, const floating* x, floating* out,
) noexcept nogil:
    """out[n, O] = activation(b + x[n, I] W[I, O])."""
    cdef Py_ssize_t count = n * layer.units, j
    spread_bias(n, layer.units, layer.b, out)
    if n == 1:
        gemv(layer.units, layer.inputs, x, <floating*> layer.w_x, layer.units, <floating> 1, out)
    else:
        gemm(n, layer.units, layer.inputs, x, layer.inputs, <floating*> layer.w_x, layer.units,
             <floating> 1, out, layer.units)
    if layer.activation == TANH:
        for j in range(count):
            out[j] = tanh_(out[j])
    elif layer.activation == SIGMOID:
        for j in range(count):
            out[j] = sigma(out[j])
    elif layer.activation == RELU:
        for j in range(count):
            # The comparison keeps NaN; max() would hide it.
            out[j] = 0 if out[j] < 0 else out[j]
