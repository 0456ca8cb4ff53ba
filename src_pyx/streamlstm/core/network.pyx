"""A model's weights, ready to run, and the way of a micro-batch through all its layers.

A Network holds copies of the weights in the layout the cells want. forward() changes
nothing of it, so threads share one, each with a work area of its own.

forward() cuts [n, T] work into blocks of at most `block` (stream, step) pairs. Within a
block each layer runs over all steps before the next layer does, which makes the input
half of its gates one product; between blocks nothing but the state rows is carried.
"""
from cython cimport floating
from libc.math cimport INFINITY
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

from streamlstm.kernels.blas cimport activate, dense_layer, recurrent_layer
from streamlstm.kernels.table cimport (
    ACTIVATION, DENSE, EMBEDDING, GRU, LSTM, SATURATION, Layer, find_kernel, float_mode,
    flush_denormals, restore_float_mode,
)

from streamlstm.kernels.table import aligned, pack
from streamlstm.layers import FUNCTIONS

# A block's work area stays within the second-level cache's neighbourhood.
cdef Py_ssize_t WORK_BYTES = 4 << 20
cdef Py_ssize_t BLOCK_MAX = 1024
# Of a sequence: the gates' input half is written and read again beside the weights in the
# second-level cache. 16 to 32 were the fastest, 128 cost 5 to 15 %.
cdef Py_ssize_t RUN_BLOCK = 32
cdef int LANES_MAX = 16
# In the order of kernel.h's enums.
KINDS = ("lstm", "gru", "dense", "activation", "embedding")
COUPLED = ("", "i", "f")


cdef double bound_of(clip):
    """Of a cell's numbers: they saturate, whatever the clip."""
    return SATURATION if clip is None else min(clip, SATURATION)


def packed_together(list parts):
    """Packed panels side by side, as pack() gives each: [panels, numbers]."""
    together = aligned((parts[0].shape[0], sum(a[0].size for a in parts)))
    return np.concatenate([a.reshape(a.shape[0], -1) for a in parts], axis=1, out=together)


cdef class Network:
    """Weights of a checked model, for one kernel.

    dtype: float32 or float64. layers: a checked model's (see layers.py). Scaling vectors:
    [inputs] and [outputs].
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
        plan.layers = <Layer*> calloc(len(layers), sizeof(Layer))
        if not plan.layers:
            raise MemoryError("no memory for the layer table")
        self.owned = []
        plan.layer_count = len(layers)
        self.initial_state = b""
        for i, layer in enumerate(layers):
            self.add_layer(&plan.layers[i], layer, dtype)
        plan.inputs = plan.layers[0].inputs
        plan.outputs = plan.layers[plan.layer_count - 1].outputs

        plan.x_scaled = bool(np.any(x_mean != 0) or np.any(x_std != 1))
        plan.y_scaled = bool(np.any(y_mean != 0) or np.any(y_std != 1))
        # In float64 always: a float32 of 101325.37 is off by a hundredth, of a small std a lot.
        plan.x_mean, plan.x_scale = <double*> self.own(x_mean), <double*> self.own(1 / x_std)
        plan.y_mean, plan.y_scale = <double*> self.own(y_mean), <double*> self.own(y_std)

        numbers = 3 * plan.width + plan.gates_width + plan.m_width
        plan.block = min(max(WORK_BYTES // (numbers * plan.itemsize), 1), BLOCK_MAX)
        plan.work_bytes = plan.block * numbers * plan.itemsize

    def __dealloc__(self):
        free(self.plan.layers)

    cdef int add_layer(self, Layer* to, layer, dtype) except -1:
        cdef Plan* plan = &self.plan
        to.kind = KINDS.index(layer.kind)
        to.inputs, to.outputs = layer.input_size, layer.output_size
        to.units = layer.units
        plan.width = max(plan.width, to.inputs, to.outputs)
        if to.kind == ACTIVATION:
            to.function = FUNCTIONS.index(layer.function)
        elif to.kind == EMBEDDING:
            to.w = self.own(np.array(layer.w, dtype))
        elif to.kind == DENSE:
            to.function = FUNCTIONS.index(layer.activation)
            self.macs += layer.w.size
            to.w, to.b = self.matrix(layer.w, 1), self.vector(layer.b, 1)
        else:
            self.add_options(to, layer)
            self.add_state(to, layer, dtype)
            if to.kind == LSTM:
                self.add_lstm(to, layer)
            else:
                self.add_gru(to, layer)
        return 0

    cdef int add_options(self, Layer* to, layer) except -1:
        to.gate = FUNCTIONS.index(layer.gate_function)
        to.candidate = FUNCTIONS.index(layer.candidate_function)
        to.clip_gates = INFINITY if layer.clip_gates is None else layer.clip_gates
        if to.kind == GRU:
            to.reset_after = layer.reset_after
            return 0
        to.output = FUNCTIONS.index(layer.output_function)
        to.plain = layer.plain
        to.coupled = COUPLED.index(layer.coupled)
        to.clip_cell = bound_of(layer.clip_cell)
        to.clip_projection = bound_of(layer.clip_projection)
        return 0

    cdef int add_state(self, Layer* to, layer, dtype) except -1:
        """The layer's place in a row, and what a step of it needs of the work area."""
        cdef Plan* plan = &self.plan
        to.h, to.c = self.state_size, self.state_size + to.outputs
        for name, size in zip(("h0", "c0"), layer.state_sizes):
            given = getattr(layer, name)
            start = np.zeros(size) if given is None else given
            self.initial_state += start.astype(dtype).tobytes()
            self.state_size += size
        # Whole panels: the fused kernels' scratch is as wide as their packed gates.
        padded = (to.units + LANES_MAX - 1) // LANES_MAX * LANES_MAX
        plan.gates_width = max(plan.gates_width, 4 * padded)
        if to.kind == GRU:
            plan.m_width = max(plan.m_width, 3 * to.units)
        elif layer.w_p is not None:
            plan.m_width = max(plan.m_width, to.units)
        return 0

    cdef int add_lstm(self, Layer* to, layer) except -1:
        gates = len(layer.gates)
        self.macs += layer.w_x.size + layer.w_h.size
        if self.plan.kernel != NULL:
            to.w = self.matrix(np.concatenate([layer.w_x, layer.w_h], axis=1), gates)
        else:
            to.w, to.w_h = self.matrix(layer.w_x, gates), self.matrix(layer.w_h, gates)
        to.b = self.vector(layer.b, gates)
        if layer.norm is not None:
            to.norm = self.vector(layer.norm, gates)
        if layer.peep is not None:
            peep = layer.peep
            if self.plan.kernel != NULL and layer.coupled:  # a place for each of i, f, o
                at = 0 if layer.coupled == "i" else layer.units
                peep = np.insert(peep, at, np.zeros(layer.units, peep.dtype))
            to.peep = self.vector(peep, len(peep) // layer.units)
        if layer.w_p is not None:
            self.macs += layer.w_p.size
            to.w_p = self.matrix(layer.w_p, 1)
            to.b_p = self.vector(
                np.zeros(to.outputs, layer.b.dtype) if layer.b_p is None else layer.b_p, 1)
        return 0

    cdef int add_gru(self, Layer* to, layer) except -1:
        cdef Py_ssize_t H = layer.units
        b_n = np.zeros(H, layer.b.dtype) if layer.b_n is None else layer.b_n
        self.macs += layer.w_x.size + layer.w_h.size
        to.b = self.vector(np.concatenate([layer.b, b_n]), 4)
        if not self.plan.kernel:
            to.w, to.w_h = self.matrix(layer.w_x, 3), self.matrix(layer.w_h, 3)
            return 0
        lanes = self.plan.kernel.lanes
        hidden = layer.w_h if layer.reset_after else layer.w_h[:2 * H]
        parts = [pack(w.reshape(-1, H, w.shape[1]), lanes) for w in (layer.w_x, hidden)]
        to.w = self.own(packed_together(parts))
        if not layer.reset_after:
            to.w_p = self.matrix(layer.w_h[2 * H:], 1)
        return 0

    cdef void* matrix(self, w, int gates) except NULL:
        """w [gates * units, K] as the kernel wants it."""
        if self.plan.kernel:
            return self.own(pack(w.reshape(gates, -1, w.shape[1]), self.plan.kernel.lanes))
        return self.own(np.array(w.T, order="C"))

    cdef void* vector(self, b, int gates) except NULL:
        """b [gates * units] as the kernel wants it."""
        if self.plan.kernel:
            return self.own(pack(b.reshape(gates, -1, 1), self.plan.kernel.lanes))
        return self.own(np.array(b))

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
    cdef floating* m = z + plan.block * plan.gates_width
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
        run_layer(plan, &plan.layers[i], n, steps, rows, a, h_start, z, m, out)
        a = out
    if not y_direct:
        scale_out(plan, n, steps, stride, a, y)


cdef inline void run_layer(
    const Plan* plan, const Layer* layer, Py_ssize_t n, Py_ssize_t steps, char** rows,
    const floating* x, floating* h_start, floating* z, floating* m, floating* out,
) noexcept nogil:
    cdef Py_ssize_t pairs = n * steps, i
    if layer.kind == EMBEDDING:
        for i in range(pairs):  # whole numbers within the vocabulary: the engine has checked
            memcpy(out + i * layer.outputs,
                   <const floating*> layer.w + <Py_ssize_t> x[i] * layer.outputs,
                   layer.outputs * sizeof(floating))
        return
    if floating is float:
        if plan.kernel:
            if layer.kind == DENSE:
                plan.kernel.dense(layer, pairs, x, out)
            elif layer.kind == ACTIVATION:
                plan.kernel.activation(layer.function, pairs, layer.units, x, out)
            else:
                plan.kernel.recurrent(layer, n, steps, rows, x, z, m, out)
            return
    if layer.kind == DENSE:
        dense_layer(layer, pairs, x, out)
    elif layer.kind == ACTIVATION:
        activate(layer.function, pairs, layer.units, x, out)
    else:
        recurrent_layer(layer, n, steps, rows, x, h_start, z, m, out)


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
