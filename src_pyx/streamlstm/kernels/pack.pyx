"""A layer's weights as a kernel reads them: in panels, which kernel.h describes."""
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdlib cimport free
from posix.stdlib cimport posix_memalign

import numpy as np

from streamlstm.kernels.kernel cimport FLOAT32, Kernel, Layer
from streamlstm.kernels.table cimport Row

cdef Py_ssize_t ALIGNMENT = 64


cdef class Block:
    """Bytes that start on a cache line, and no more of them than asked for."""

    cdef void* data
    cdef Py_ssize_t nbytes

    def __cinit__(self, Py_ssize_t nbytes):
        if posix_memalign(&self.data, ALIGNMENT, max(nbytes, 1)):
            raise MemoryError(f"no memory for {nbytes} more bytes of weights or states")
        self.nbytes = nbytes

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.nbytes, False, flags)


def aligned(shape, dtype=np.float32):
    """An array whose data start on a cache line."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, Block(nbytes))


def packed(Row row not None, w):
    """The panels of one matrix w [gates, units, depth] for a row of the table: bytes."""
    return matrix(row.kernel, [w])


cdef int pack_layer(Layer* to, layer, const Kernel* kernel, list owned) except -1:
    """Point `to` at copies of the layer's weights, which `owned` keeps alive."""
    if layer.kind == "embedding":
        to.w = own(np.array(layer.w, numbers(kernel)), owned)
    elif layer.kind == "dense":
        to.w = own(matrix(kernel, [np.expand_dims(layer.w, 0)]), owned)
        to.b = own(vector(kernel, layer.b, 1), owned)
    elif layer.kind == "lstm":
        pack_lstm(to, layer, kernel, owned)
    elif layer.kind == "gru":
        pack_gru(to, layer, kernel, owned)
    return 0


cdef int pack_lstm(Layer* to, layer, const Kernel* kernel, list owned) except -1:
    cdef Py_ssize_t gates = len(layer.gates), units = layer.units
    w = np.concatenate([layer.w_x, layer.w_h], axis=1)
    to.w = own(matrix(kernel, [w.reshape(gates, units, -1)]), owned)
    to.b = own(vector(kernel, layer.b, gates), owned)
    if layer.norm is not None:
        to.norm = own(vector(kernel, layer.norm, gates), owned)
    if layer.peep is not None:
        peep = layer.peep
        if layer.coupled:  # a place for each of i, f, o
            peep = np.insert(peep, 0 if layer.coupled == "i" else units, np.zeros(units))
        to.peep = own(vector(kernel, peep, 3), owned)
    if layer.w_p is not None:
        to.w_p = own(matrix(kernel, [np.expand_dims(layer.w_p, 0)]), owned)
        b_p = np.zeros(layer.output_size) if layer.b_p is None else layer.b_p
        to.b_p = own(vector(kernel, b_p, 1), owned)
    return 0


cdef int pack_gru(Layer* to, layer, const Kernel* kernel, list owned) except -1:
    cdef Py_ssize_t units = layer.units
    hidden = layer.w_h if layer.reset_after else layer.w_h[:2 * units]
    parts = [w.reshape(-1, units, w.shape[1]) for w in (layer.w_x, hidden)]
    to.w = own(matrix(kernel, parts), owned)
    if not layer.reset_after:
        to.w_p = own(matrix(kernel, [np.expand_dims(layer.w_h[2 * units:], 0)]), owned)
    b_n = np.zeros(units) if layer.b_n is None else layer.b_n
    to.b = own(vector(kernel, np.concatenate([layer.b, b_n]), 4), owned)
    return 0


cdef matrix(const Kernel* kernel, list parts):
    """Matrices [gates, units, depth] by the kernel's pack(), side by side in each panel."""
    cdef int units = parts[0].shape[1]
    cdef ptrdiff_t stride
    cdef char* at
    sizes = [kernel.panel_bytes(part.shape[0], units, part.shape[2]) for part in parts]
    panels = aligned((panel_count(kernel, units), sum(sizes)), np.uint8)
    at, stride = <char*> address(panels), panels.shape[1]
    for part, size in zip(parts, sizes):
        w = np.ascontiguousarray(part, numbers(kernel))
        kernel.pack(w.shape[0], units, w.shape[2], address(w), at, stride)
        at += <ptrdiff_t> size
    return panels


cdef vector(const Kernel* kernel, b, int gates):
    """b [gates * units] as [panel][gate][lane]: numbers, whatever the format of the weights."""
    units = b.size // gates
    panels = panel_count(kernel, units)
    lanes = kernel.lanes or units
    filled = np.zeros((gates, panels * lanes), numbers(kernel))
    filled[:, :units] = b.reshape(gates, units)
    to = aligned((panels, gates, lanes), filled.dtype)
    to[...] = filled.reshape(gates, panels, lanes).transpose(1, 0, 2)
    return to


cdef Py_ssize_t panel_count(const Kernel* kernel, Py_ssize_t units):
    return (units + kernel.lanes - 1) // kernel.lanes if kernel.lanes else 1


cdef numbers(const Kernel* kernel):
    return np.float32 if kernel.numbers == FLOAT32 else np.float64


cdef void* own(array, list owned) except NULL:
    owned.append(array)
    return address(array)


cdef void* address(array) except NULL:
    return <void*> <Py_ssize_t> array.ctypes.data
