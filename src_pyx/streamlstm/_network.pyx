"""A model's weights, ready to run, and the way of a micro-batch through all its layers.

A Network holds copies of the weights in the layout the cells want, and one work area;
so it belongs to one engine, and the engine's lock guards forward().

forward() cuts [n, T] work into blocks of at most `block` (stream, step) pairs. Within a
block each layer runs over all steps before the next layer does, which makes the input
half of its gates one product; between blocks nothing but the state rows is carried.
"""
from cython cimport floating
from libc.stdlib cimport calloc, free, malloc

import numpy as np

from streamlstm._cells_blas cimport (
    DENSE_LAYER, LSTM_LAYER, Activation, Layer, dense_layer, lstm_layer,
)

# A block's work area stays within the second-level cache's neighbourhood.
cdef Py_ssize_t WORK_BYTES = 4 << 20
cdef Py_ssize_t BLOCK_MAX = 1024
ACTIVATIONS = ("linear", "tanh", "sigmoid", "relu")  # in the order of the enum


cdef class Network:
    """Weights of a checked model.

    dtype: float32 or float64. layers: ("lstm", w_x [4H, I], w_h [4H, H], b [4H], h0 [H], c0 [H])
    or ("dense", w [O, I], b [O], activation). Scaling vectors: [inputs] and [outputs].
    """

    def __cinit__(self, dtype, list layers, x_mean, x_std, y_mean, y_std):
        cdef Py_ssize_t size = 0, i
        cdef Layer* layer
        self.itemsize = np.dtype(dtype).itemsize
        self.owned = []
        self.layers = <Layer*> calloc(len(layers), sizeof(Layer))
        if not self.layers:
            raise MemoryError("no memory for the layer table")
        initial = []
        for i, spec in enumerate(layers):
            layer = &self.layers[i]
            if spec[0] == "lstm":
                _, w_x, w_h, b, h0, c0 = spec
                layer.kind = LSTM_LAYER
                layer.units = w_h.shape[1]
                layer.w_h = self.own(w_h.T, dtype)
                layer.h, layer.c = size, size + layer.units
                size += 2 * layer.units
                initial += [h0, c0]
                self.gates_width = max(self.gates_width, 4 * layer.units)
                self.macs += 4 * layer.units * layer.units
            else:
                _, w_x, b, activation = spec
                layer.kind = DENSE_LAYER
                layer.units = w_x.shape[0]
                layer.activation = <Activation> <int> ACTIVATIONS.index(activation)
            layer.inputs = w_x.shape[1]
            layer.w_x = self.own(w_x.T, dtype)
            layer.b = self.own(b, dtype)
            self.macs += w_x.size
            self.width = max(self.width, layer.inputs, layer.units)
        self.layer_count = len(layers)
        self.inputs = self.layers[0].inputs
        self.outputs = self.layers[self.layer_count - 1].units
        self.state_size = size
        self.initial_state = np.concatenate(initial).astype(dtype).tobytes()
        # In float64 always: a float32 of 101325.37 is off by a hundredth, of a small std a lot.
        self.x_mean, self.x_scale = self.own(x_mean, float), self.own(1 / x_std, float)
        self.y_mean, self.y_scale = self.own(y_mean, float), self.own(y_std, float)

        numbers = 3 * self.width + self.gates_width
        self.block = min(max(WORK_BYTES // (numbers * self.itemsize), 1), BLOCK_MAX)
        # Untouched pages cost nothing: a small batch makes only its own part resident.
        self.work = malloc(self.block * numbers * self.itemsize)
        if not self.work:
            raise MemoryError("no memory for the network's work area")

    def __dealloc__(self):
        free(self.layers)
        free(self.work)

    cdef void* own(self, array, dtype) except NULL:
        copy = np.array(array, dtype=dtype, order="C")
        self.owned.append(copy)
        return <void*> <Py_ssize_t> copy.ctypes.data

    cdef void forward(
        self, char** rows, Py_ssize_t n, Py_ssize_t steps, const void* x, void* y,
    ) noexcept nogil:
        """x [n, steps, inputs] -> y [n, steps, outputs]; the states in `rows` move on."""
        if self.itemsize == 4:
            forward_blocks[float](self, rows, n, steps, <const float*> x, <float*> y)
        else:
            forward_blocks[double](self, rows, n, steps, <const double*> x, <double*> y)


cdef void forward_blocks(
    Network net, char** rows, Py_ssize_t n, Py_ssize_t steps,
    const floating* x, floating* y,
) noexcept nogil:
    cdef Py_ssize_t streams = min(n, net.block)
    cdef Py_ssize_t block_steps = min(steps, net.block // max(streams, 1))
    cdef Py_ssize_t first = 0, t, m, k
    while first < n:
        m = min(streams, n - first)
        t = 0
        while t < steps:
            k = min(block_steps, steps - t)
            forward_block(net, rows + first, m, k, steps,
                          x + (first * steps + t) * net.inputs,
                          y + (first * steps + t) * net.outputs)
            t += k
        first += m


cdef void forward_block(
    Network net, char** rows, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t stride,
    const floating* x, floating* y,
) noexcept nogil:
    """One block: n streams whose x and y stand `stride` steps apart."""
    cdef floating* a = <floating*> net.work
    cdef floating* b = a + net.block * net.width
    cdef floating* h_start = b + net.block * net.width
    cdef floating* z = h_start + net.block * net.width
    cdef Layer* layer
    cdef int i
    scale_in(net, n, steps, stride, x, a)
    for i in range(net.layer_count):
        layer = &net.layers[i]
        if layer.kind == LSTM_LAYER:
            lstm_layer(layer, n, steps, rows, a, h_start, z, b)
        else:
            dense_layer(layer, n * steps, a, b)
        a, b = b, a
    scale_out(net, n, steps, stride, a, y)


cdef void scale_in(
    Network net, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t stride,
    const floating* x, floating* out,
) noexcept nogil:
    """out = (x - mean) / std, packed to [n, steps, inputs]."""
    cdef double* mean = <double*> net.x_mean
    cdef double* scale = <double*> net.x_scale
    cdef Py_ssize_t _i, _t, j, width = net.inputs
    for _i in range(n):
        for _t in range(steps):
            for j in range(width):
                out[j] = <floating> ((x[j] - mean[j]) * scale[j])
            x += width
            out += width
        x += (stride - steps) * width


cdef void scale_out(
    Network net, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t stride,
    const floating* a, floating* y,
) noexcept nogil:
    """y = a std + mean, spread to `stride` steps a stream."""
    cdef double* mean = <double*> net.y_mean
    cdef double* scale = <double*> net.y_scale
    cdef Py_ssize_t _i, _t, j, width = net.outputs
    for _i in range(n):
        for _t in range(steps):
            for j in range(width):
                y[j] = <floating> (a[j] * scale[j] + mean[j])
            a += width
            y += width
        y += (stride - steps) * width
