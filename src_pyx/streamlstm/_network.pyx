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
from streamlstm._cells_fused cimport (
    find_kernel, float_mode, flush_denormals, fused_layer, restore_float_mode,
)

from streamlstm._cells_fused import pack

# A block's work area stays within the second-level cache's neighbourhood.
cdef Py_ssize_t WORK_BYTES = 4 << 20
cdef Py_ssize_t BLOCK_MAX = 1024
cdef int LANES_MAX = 16
ACTIVATIONS = ("linear", "tanh", "sigmoid", "relu")  # in the order of the enum


cdef class Network:
    """Weights of a checked model, for one kernel.

    dtype: float32 or float64. layers: ("lstm", w_x [4H, I], w_h [4H, H], b [4H], h0 [H], c0 [H])
    or ("dense", w [O, I], b [O], activation). Scaling vectors: [inputs] and [outputs].
    kernel: "avx512", "avx2", "portable" (float32 only) or "blas".
    """

    def __cinit__(self, dtype, list layers, x_mean, x_std, y_mean, y_std, str kernel):
        self.itemsize = np.dtype(dtype).itemsize
        self.kernel_name = kernel
        if kernel == "blas":
            self.arithmetic = f"f{8 * self.itemsize}-blas"
        else:
            self.kernel = find_kernel(kernel)
            if not self.kernel or self.itemsize != 4:
                raise ValueError(f"no {kernel} kernel for {dtype} on this machine")
            self.arithmetic = self.kernel.arithmetic.decode()
            self.fused = <fused_layer*> calloc(len(layers), sizeof(fused_layer))
        self.layers = <Layer*> calloc(len(layers), sizeof(Layer))
        if not self.layers or (self.kernel and not self.fused):
            raise MemoryError("no memory for the layer table")
        self.owned = []
        self.layer_count = len(layers)
        for i, spec in enumerate(layers):
            self.add_layer(i, spec, dtype)
        self.inputs = self.layers[0].inputs
        self.outputs = self.layers[self.layer_count - 1].units
        self.initial_state = b"".join(
            np.asarray(a, dtype).tobytes() for spec in layers if spec[0] == "lstm" for a in spec[4:])

        self.x_scaled = bool(np.any(x_mean != 0) or np.any(x_std != 1))
        self.y_scaled = bool(np.any(y_mean != 0) or np.any(y_std != 1))
        self.x_mean = self.own(np.array(x_mean, dtype))
        self.x_scale = self.own(np.array(1 / x_std, dtype))
        self.y_mean = self.own(np.array(y_mean, dtype))
        self.y_scale = self.own(np.array(y_std, dtype))

        numbers = 3 * self.width + self.gates_width
        self.block = min(max(WORK_BYTES // (numbers * self.itemsize), 1), BLOCK_MAX)
        # Untouched pages cost nothing: a small batch makes only its own part resident.
        self.work = malloc(self.block * numbers * self.itemsize)
        if not self.work:
            raise MemoryError("no memory for the network's work area")

    def __dealloc__(self):
        free(self.layers)
        free(self.fused)
        free(self.work)

    cdef int add_layer(self, int i, tuple spec, dtype) except -1:
        cdef Layer* layer = &self.layers[i]
        if spec[0] == "lstm":
            _, w_x, w_h, b, _, _ = spec
            layer.kind = LSTM_LAYER
            layer.units = w_h.shape[1]
            layer.h, layer.c = self.state_size, self.state_size + layer.units
            self.state_size += 2 * layer.units
            # Whole panels: the fused kernels' scratch is as wide as their packed gates.
            padded = (layer.units + LANES_MAX - 1) // LANES_MAX * LANES_MAX
            self.gates_width = max(self.gates_width, 4 * padded)
            weights = np.concatenate([w_x, w_h], axis=1)
        else:
            _, w_x, b, activation = spec
            layer.kind = DENSE_LAYER
            layer.units = w_x.shape[0]
            layer.activation = <Activation> <int> ACTIVATIONS.index(activation)
            weights = w_x
        layer.inputs = w_x.shape[1]
        self.macs += weights.size
        self.width = max(self.width, layer.inputs, layer.units)
        if not self.kernel:
            layer.w_x = self.own(np.array(w_x.T, dtype, order="C"))
            if spec[0] == "lstm":
                layer.w_h = self.own(np.array(w_h.T, dtype, order="C"))
            layer.b = self.own(np.array(b, dtype))
            return 0
        cdef fused_layer* fused = &self.fused[i]
        fused.inputs, fused.units = layer.inputs, layer.units
        fused.h, fused.c, fused.activation = layer.h, layer.c, layer.activation
        gates = 4 if spec[0] == "lstm" else 1
        fused.w = <float*> self.own(
            pack(weights.reshape(gates, layer.units, -1), self.kernel.lanes))
        fused.b = <float*> self.own(pack(b.reshape(gates, layer.units, 1), self.kernel.lanes))
        return 0

    cdef void* own(self, array) except NULL:
        self.owned.append(array)
        return <void*> <Py_ssize_t> array.ctypes.data

    cdef void forward(
        self, char** rows, Py_ssize_t n, Py_ssize_t steps, const void* x, void* y,
    ) noexcept nogil:
        """x [n, steps, inputs] -> y [n, steps, outputs]; the states in `rows` move on.

        y is written while x is still being read: they must not overlap.
        """
        cdef float_mode mode = flush_denormals()
        if self.itemsize == 4:
            forward_blocks[float](self, rows, n, steps, <const float*> x, <float*> y)
        else:
            forward_blocks[double](self, rows, n, steps, <const double*> x, <double*> y)
        restore_float_mode(mode)


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
    cdef floating* room = <floating*> net.work
    cdef floating* h_start = room + 2 * net.block * net.width
    cdef floating* z = h_start + net.block * net.width
    # Where nothing is to be scaled or moved together, x and y are used in place.
    cdef bint packed = stride == steps or n == 1
    cdef bint y_direct = packed and not net.y_scaled
    cdef const floating* a = x
    cdef floating* out
    cdef int i
    if not packed or net.x_scaled:
        scale_in(net, n, steps, stride, x, room + net.block * net.width)
        a = room + net.block * net.width
    for i in range(net.layer_count):
        out = y if y_direct and i == net.layer_count - 1 else room + (i % 2) * net.block * net.width
        run_layer(net, i, n, steps, rows, a, h_start, z, out)
        a = out
    if not y_direct:
        scale_out(net, n, steps, stride, a, y)


cdef inline void run_layer(
    Network net, int i, Py_ssize_t n, Py_ssize_t steps, char** rows,
    const floating* x, floating* h_start, floating* z, floating* out,
) noexcept nogil:
    cdef bint lstm = net.layers[i].kind == LSTM_LAYER
    if floating is float:
        if net.kernel:
            if lstm:
                net.kernel.lstm(&net.fused[i], n, steps, rows, x, z, out)
            else:
                net.kernel.dense(&net.fused[i], n * steps, x, out)
            return
    if lstm:
        lstm_layer(&net.layers[i], n, steps, rows, x, h_start, z, out)
    else:
        dense_layer(&net.layers[i], n * steps, x, out)


cdef void scale_in(
    Network net, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t stride,
    const floating* x, floating* out,
) noexcept nogil:
    """out = (x - mean) / std, packed to [n, steps, inputs]."""
    cdef floating* mean = <floating*> net.x_mean
    cdef floating* scale = <floating*> net.x_scale
    cdef Py_ssize_t _i, _t, j, width = net.inputs
    for _i in range(n):
        for _t in range(steps):
            for j in range(width):
                out[j] = (x[j] - mean[j]) * scale[j]
            x += width
            out += width
        x += (stride - steps) * width


cdef void scale_out(
    Network net, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t stride,
    const floating* a, floating* y,
) noexcept nogil:
    """y = a std + mean, spread to `stride` steps a stream."""
    cdef floating* mean = <floating*> net.y_mean
    cdef floating* scale = <floating*> net.y_scale
    cdef Py_ssize_t _i, _t, j, width = net.outputs
    for _i in range(n):
        for _t in range(steps):
            for j in range(width):
                y[j] = a[j] * scale[j] + mean[j]
            a += width
            y += width
        y += (stride - steps) * width
