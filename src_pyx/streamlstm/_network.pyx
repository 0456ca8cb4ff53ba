"""A model's weights, ready to run, and the way of a micro-batch through all its layers.

A Network holds copies of the weights in the layout the cells want. forward() changes
nothing of it, so threads share one, each with a work area of its own.

forward() cuts [n, T] work into blocks of at most `block` (stream, step) pairs. Within a
block each layer runs over all steps before the next layer does, which makes the input
half of its gates one product; between blocks nothing but the state rows is carried.
"""
from cython cimport floating
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

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
# Of a sequence: the gates' input half is written and read again beside the weights in the
# second-level cache. 16 to 32 were the fastest, 128 cost 5 to 15 %.
cdef Py_ssize_t RUN_BLOCK = 32
cdef int LANES_MAX = 16
ACTIVATIONS = ("linear", "tanh", "sigmoid", "relu")  # in the order of the enum


cdef class Network:
    """Weights of a checked model, for one kernel.

    dtype: float32 or float64. layers: ("lstm", w_x [4H, I], w_h [4H, H], b [4H], h0 [H], c0 [H])
    or ("dense", w [O, I], b [O], activation). Scaling vectors: [inputs] and [outputs].
    kernel: "avx512", "avx2", "portable" (float32 only) or "blas".
    """

    def __cinit__(self, dtype, list layers, x_mean, x_std, y_mean, y_std, str kernel):
        cdef Plan* plan = &self.plan
        plan.itemsize = np.dtype(dtype).itemsize
        self.kernel_name = kernel
        if kernel == "blas":
            self.arithmetic = f"f{8 * plan.itemsize}-blas"
        else:
            plan.kernel = find_kernel(kernel)
            if not plan.kernel or plan.itemsize != 4:
                raise ValueError(f"no {kernel} kernel for {dtype} on this machine")
            self.arithmetic = plan.kernel.arithmetic.decode()
            plan.fused = <fused_layer*> calloc(len(layers), sizeof(fused_layer))
        plan.layers = <Layer*> calloc(len(layers), sizeof(Layer))
        if not plan.layers or (plan.kernel and not plan.fused):
            raise MemoryError("no memory for the layer table")
        self.owned = []
        plan.layer_count = len(layers)
        for i, spec in enumerate(layers):
            self.add_layer(i, spec, dtype)
        plan.inputs = plan.layers[0].inputs
        plan.outputs = plan.layers[plan.layer_count - 1].units
        self.initial_state = b"".join(
            np.asarray(a, dtype).tobytes()
            for spec in layers if spec[0] == "lstm" for a in spec[4:])

        plan.x_scaled = bool(np.any(x_mean != 0) or np.any(x_std != 1))
        plan.y_scaled = bool(np.any(y_mean != 0) or np.any(y_std != 1))
        # In float64 always: a float32 of 101325.37 is off by a hundredth, of a small std a lot.
        plan.x_mean, plan.x_scale = <double*> self.own(x_mean), <double*> self.own(1 / x_std)
        plan.y_mean, plan.y_scale = <double*> self.own(y_mean), <double*> self.own(y_std)

        numbers = 3 * plan.width + plan.gates_width
        plan.block = min(max(WORK_BYTES // (numbers * plan.itemsize), 1), BLOCK_MAX)
        plan.work_bytes = plan.block * numbers * plan.itemsize

    def __dealloc__(self):
        free(self.plan.layers)
        free(self.plan.fused)

    cdef int add_layer(self, int i, tuple spec, dtype) except -1:
        cdef Plan* plan = &self.plan
        cdef Layer* layer = &plan.layers[i]
        if spec[0] == "lstm":
            _, w_x, w_h, b, _, _ = spec
            layer.kind = LSTM_LAYER
            layer.units = w_h.shape[1]
            layer.h, layer.c = self.state_size, self.state_size + layer.units
            self.state_size += 2 * layer.units
            # Whole panels: the fused kernels' scratch is as wide as their packed gates.
            padded = (layer.units + LANES_MAX - 1) // LANES_MAX * LANES_MAX
            plan.gates_width = max(plan.gates_width, 4 * padded)
            weights = np.concatenate([w_x, w_h], axis=1)
        else:
            _, w_x, b, activation = spec
            layer.kind = DENSE_LAYER
            layer.units = w_x.shape[0]
            layer.activation = <Activation> <int> ACTIVATIONS.index(activation)
            weights = w_x
        layer.inputs = w_x.shape[1]
        self.macs += weights.size
        plan.width = max(plan.width, layer.inputs, layer.units)
        if not plan.kernel:
            layer.w_x = self.own(np.array(w_x.T, dtype, order="C"))
            if spec[0] == "lstm":
                layer.w_h = self.own(np.array(w_h.T, dtype, order="C"))
            layer.b = self.own(np.array(b, dtype))
            return 0
        cdef fused_layer* fused = &plan.fused[i]
        fused.inputs, fused.units = layer.inputs, layer.units
        fused.h, fused.c, fused.activation = layer.h, layer.c, layer.activation
        gates = 4 if spec[0] == "lstm" else 1
        fused.w = <float*> self.own(
            pack(weights.reshape(gates, layer.units, -1), plan.kernel.lanes))
        fused.b = <float*> self.own(pack(b.reshape(gates, layer.units, 1), plan.kernel.lanes))
        return 0

    cdef void* own(self, array) except NULL:
        array = np.ascontiguousarray(array)
        self.owned.append(array)
        return <void*> <Py_ssize_t> array.ctypes.data

    @property
    def itemsize(self):
        """Bytes of a number: 4 or 8."""
        return self.plan.itemsize

    @property
    def inputs(self):
        """Numbers in an event."""
        return self.plan.inputs

    @property
    def outputs(self):
        """Numbers that a step answers with."""
        return self.plan.outputs


cdef void forward(
    const Plan* plan, char** rows, Py_ssize_t n, Py_ssize_t steps,
    const void* x, void* y, void* work,
) noexcept nogil:
    """x [n, steps, inputs] -> y [n, steps, outputs]; the states in `rows` move on.

    work: plan.work_bytes of scratch. y is written while x is still being read: they must
    not overlap.
    """
    cdef float_mode mode = flush_denormals()
    if plan.itemsize == 4:
        forward_blocks[float](plan, rows, n, steps, <const float*> x, <float*> y, <float*> work)
    else:
        forward_blocks[double](plan, rows, n, steps, <const double*> x, <double*> y, <double*> work)
    restore_float_mode(mode)


cdef void forward_blocks(
    const Plan* plan, char** rows, Py_ssize_t n, Py_ssize_t steps,
    const floating* x, floating* y, floating* work,
) noexcept nogil:
    cdef Py_ssize_t streams = min(n, plan.block)
    cdef Py_ssize_t block_steps = min(steps, max(min(plan.block, RUN_BLOCK) // max(streams, 1), 1))
    cdef Py_ssize_t first = 0, t, m, k
    while first < n:
        m = min(streams, n - first)
        t = 0
        while t < steps:
            k = min(block_steps, steps - t)
            forward_block(plan, rows + first, m, k, steps,
                          x + (first * steps + t) * plan.inputs,
                          y + (first * steps + t) * plan.outputs, work)
            t += k
        first += m


cdef void forward_block(
    const Plan* plan, char** rows, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t stride,
    const floating* x, floating* y, floating* work,
) noexcept nogil:
    """One block: n streams whose x and y stand `stride` steps apart."""
    cdef floating* h_start = work + 2 * plan.block * plan.width
    cdef floating* z = h_start + plan.block * plan.width
    # Where nothing is to be scaled or moved together, x and y are used in place.
    cdef bint packed = stride == steps or n == 1
    cdef bint y_direct = packed and not plan.y_scaled
    cdef const floating* a = x
    cdef floating* out
    cdef int i
    if not packed or plan.x_scaled:
        scale_in(plan, n, steps, stride, x, work + plan.block * plan.width)
        a = work + plan.block * plan.width
    for i in range(plan.layer_count):
        out = work + (i % 2) * plan.block * plan.width
        if y_direct and i == plan.layer_count - 1:
            out = y
        run_layer(plan, i, n, steps, rows, a, h_start, z, out)
        a = out
    if not y_direct:
        scale_out(plan, n, steps, stride, a, y)


cdef inline void run_layer(
    const Plan* plan, int i, Py_ssize_t n, Py_ssize_t steps, char** rows,
    const floating* x, floating* h_start, floating* z, floating* out,
) noexcept nogil:
    cdef bint lstm = plan.layers[i].kind == LSTM_LAYER
    if floating is float:
        if plan.kernel:
            if lstm:
                plan.kernel.lstm(&plan.fused[i], n, steps, rows, x, z, out)
            else:
                plan.kernel.dense(&plan.fused[i], n * steps, x, out)
            return
    if lstm:
        lstm_layer(&plan.layers[i], n, steps, rows, x, h_start, z, out)
    else:
        dense_layer(&plan.layers[i], n * steps, x, out)


cdef void scale_in(
    const Plan* plan, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t stride,
    const floating* x, floating* out,
) noexcept nogil:
    """out = (x - mean) / std, packed to [n, steps, inputs]."""
    cdef const double* mean = plan.x_mean
    cdef const double* scale = plan.x_scale
    cdef Py_ssize_t _i, _t, j, width = plan.inputs
    for _i in range(n):
        if not plan.x_scaled:  # copied: even 1 * x + 0 would turn -0 into 0
            memcpy(out, x, steps * width * sizeof(floating))
            x += stride * width
            out += steps * width
            continue
        for _t in range(steps):
            for j in range(width):
                out[j] = <floating> ((x[j] - mean[j]) * scale[j])
            x += width
            out += width
        x += (stride - steps) * width


cdef void scale_out(
    const Plan* plan, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t stride,
    const floating* a, floating* y,
) noexcept nogil:
    """y = a std + mean, spread to `stride` steps a stream."""
    cdef const double* mean = plan.y_mean
    cdef const double* scale = plan.y_scale
    cdef Py_ssize_t _i, _t, j, width = plan.outputs
    for _i in range(n):
        if not plan.y_scaled:
            memcpy(y, a, steps * width * sizeof(floating))
            a += steps * width
            y += stride * width
            continue
        for _t in range(steps):
            for j in range(width):
                y[j] = <floating> (a[j] * scale[j] + mean[j])
            a += width
            y += width
        y += (stride - steps) * width
