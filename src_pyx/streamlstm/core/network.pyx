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

from streamlstm.kernels.kernel cimport (
    ACTIVATION, DENSE, EMBEDDING, FLOAT32, GRU, SATURATION, Layer, Scratch, float_mode,
    flush_denormals, restore_float_mode,
)
from streamlstm.kernels.pack cimport pack_layer
from streamlstm.kernels.table cimport Row

from streamlstm.layers import FUNCTIONS

# A block's work area stays within the second-level cache's neighbourhood.
cdef Py_ssize_t WORK_BYTES = 4 << 20
cdef Py_ssize_t BLOCK_MAX = 1024
# Of a sequence: the gates' input half is written and read again beside the weights in the
# second-level cache. 16 to 32 were the fastest, 128 cost 5 to 15 %.
cdef Py_ssize_t RUN_BLOCK = 32
cdef int LANES = 16  # of all kernels so far, at most: blocks are of one size, whichever runs
# In the order of kernel.h's enums.
KINDS = ("lstm", "gru", "dense", "activation", "embedding")
COUPLED = ("", "i", "f")


cdef double bound_of(clip):
    """Of a cell's numbers: they saturate, whatever the clip."""
    return SATURATION if clip is None else min(clip, SATURATION)


cdef class Network:
    """Weights of a checked model, for one kernel: a row of the table.

    layers: a checked model's (see layers.py). Scaling vectors: [inputs] and [outputs].
    """

    def __cinit__(self, Row row not None, list layers, x_mean, x_std, y_mean, y_std):
        cdef Plan* plan = &self.plan
        self.row = row
        plan.kernel = row.kernel[0]
        plan.number_bytes = sizeof(float) if row.kernel.numbers == FLOAT32 else sizeof(double)
        plan.layers = <Layer*> calloc(len(layers), sizeof(Layer))
        if not plan.layers:
            raise MemoryError("no memory for the layer table")
        self.owned = []
        plan.layer_count = len(layers)
        self.initial_state = b""
        for i, layer in enumerate(layers):
            self.add_layer(&plan.layers[i], layer)
        plan.inputs = plan.layers[0].inputs
        plan.outputs = plan.layers[plan.layer_count - 1].outputs

        plan.x_scaled = bool(np.any(x_mean != 0) or np.any(x_std != 1))
        plan.y_scaled = bool(np.any(y_mean != 0) or np.any(y_std != 1))
        # In float64 always: a float32 of 101325.37 is off by a hundredth, of a small std a lot.
        plan.x_mean, plan.x_scale = <double*> self.own(x_mean), <double*> self.own(1 / x_std)
        plan.y_mean, plan.y_scale = <double*> self.own(y_mean), <double*> self.own(y_std)

        numbers = 3 * plan.width + plan.gates_width + plan.m_width
        plan.block = min(max(WORK_BYTES // (numbers * plan.number_bytes), 1), BLOCK_MAX)
        plan.work_bytes = plan.block * numbers * plan.number_bytes

    def __dealloc__(self):
        free(self.plan.layers)

    cdef int add_layer(self, Layer* to, layer) except -1:
        cdef Plan* plan = &self.plan
        to.kind = KINDS.index(layer.kind)
        to.inputs, to.outputs = layer.input_size, layer.output_size
        to.units = layer.units
        plan.width = max(plan.width, to.inputs, to.outputs)
        if to.kind == ACTIVATION:
            to.function = FUNCTIONS.index(layer.function)
        elif to.kind == DENSE:
            to.function = FUNCTIONS.index(layer.activation)
        elif to.kind != EMBEDDING:
            self.add_options(to, layer)
            self.add_state(to, layer)
        if to.kind != EMBEDDING:
            self.macs += sum(a.size for a in layer.tensors().values() if a.ndim == 2)
        return pack_layer(to, layer, &plan.kernel, self.owned)

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

    cdef int add_state(self, Layer* to, layer) except -1:
        """The layer's place in a row, and what a step of it needs of the work area."""
        cdef Plan* plan = &self.plan
        to.h, to.c = self.state_size, self.state_size + to.outputs
        for name, size in zip(("h0", "c0"), layer.state_sizes):
            given = getattr(layer, name)
            start = np.zeros(size) if given is None else given
            self.initial_state += start.astype(self.row.numbers).tobytes()
            self.state_size += size
        # Whole panels: the fused kernels' scratch is as wide as their packed gates.
        lanes = max(plan.kernel.lanes, LANES)
        padded = (to.units + lanes - 1) // lanes * lanes
        plan.gates_width = max(plan.gates_width, 4 * padded)
        if to.kind == GRU:
            plan.m_width = max(plan.m_width, 3 * to.units)
        elif layer.w_p is not None:
            plan.m_width = max(plan.m_width, to.units)
        return 0

    cdef void* own(self, array) except NULL:
        array = np.ascontiguousarray(array)
        self.owned.append(array)
        return <void*> <Py_ssize_t> array.ctypes.data


cdef void forward(
    const Plan* plan, char** rows, Py_ssize_t n, Py_ssize_t steps,
    const void* x, void* y, void* work,
) noexcept nogil:
    """x [n, steps, inputs] -> y [n, steps, outputs]; the states in `rows` move on.

    work: plan.work_bytes of scratch. y is written while x is still being read: they must
    not overlap.
    """
    cdef bint single = plan.kernel.numbers == FLOAT32
    cdef float_mode mode = flush_denormals()
    if single:
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
    cdef floating* h = work + 2 * plan.block * plan.width
    cdef floating* z = h + plan.block * plan.width
    cdef Scratch scratch
    # Where nothing is to be scaled or moved together, x and y are used in place.
    cdef bint packed = stride == steps or n == 1
    cdef bint y_direct = packed and not plan.y_scaled
    cdef const floating* a = x
    cdef floating* out
    cdef int i
    scratch.h, scratch.z, scratch.m = h, z, z + plan.block * plan.gates_width
    if not packed or plan.x_scaled:
        scale_in(plan, n, steps, stride, x, work + plan.block * plan.width)
        a = work + plan.block * plan.width
    for i in range(plan.layer_count):
        out = work + (i % 2) * plan.block * plan.width
        if y_direct and i == plan.layer_count - 1:
            out = y
        run_layer(plan, &plan.layers[i], n, steps, rows, a, &scratch, out)
        a = out
    if not y_direct:
        scale_out(plan, n, steps, stride, a, y)


cdef inline void run_layer(
    const Plan* plan, const Layer* layer, Py_ssize_t n, Py_ssize_t steps, char** rows,
    const floating* x, const Scratch* scratch, floating* out,
) noexcept nogil:
    cdef Py_ssize_t pairs = n * steps, i
    if layer.kind == EMBEDDING:
        for i in range(pairs):  # whole numbers within the vocabulary: the engine has checked
            memcpy(out + i * layer.outputs,
                   <const floating*> layer.w + <Py_ssize_t> x[i] * layer.outputs,
                   layer.outputs * sizeof(floating))
    elif layer.kind == DENSE:
        plan.kernel.dense(layer, pairs, x, out)
    elif layer.kind == ACTIVATION:
        plan.kernel.activation(layer.function, pairs, layer.units, x, out)
    else:
        plan.kernel.recurrent(layer, n, steps, rows, x, scratch, out)


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
