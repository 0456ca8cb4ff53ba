"""The fused float32 kernels: which there are, and the packing of weights for them.

kernel.h says what a kernel is and how its weights lie; fused.h is their one
source, built once per target by avx512.c, avx2.c and portable.c.
"""
import numpy as np

from streamlstm.layers import FUNCTIONS

ALIGNMENT = 64


cdef const fused_kernel* find_kernel(str name) except? NULL:
    """The kernel of this name, or NULL where this CPU or this build lacks it."""
    if name == "avx512":
        return streamlstm_kernel_avx512()
    if name == "avx2":
        return streamlstm_kernel_avx2()
    if name == "portable":
        return streamlstm_kernel_portable()
    raise ValueError(f"no kernel is called {name!r}")


def available(str name):
    """(arithmetic class, lanes) of a kernel, or None where this machine lacks it."""
    cdef const fused_kernel* kernel = find_kernel(name)
    return (kernel.arithmetic.decode(), kernel.lanes) if kernel else None


def pack(gates, int lanes):
    """Panels of `lanes` units: gates [G, units, K] -> [panels, K, G, lanes], zero-filled.

    The result is float32, C-ordered and aligned to 64 bytes.
    """
    cdef int G, units, K
    G, units, K = gates.shape
    panels = (units + lanes - 1) // lanes
    packed = aligned((panels, K, G, lanes))
    padded = np.zeros((G, panels * lanes, K), np.float32)
    padded[:, :units] = gates
    packed[...] = padded.reshape(G, panels, lanes, K).transpose(1, 3, 0, 2)
    return packed


def aligned(shape):
    """A float32 array whose data start on a cache line."""
    count = int(np.prod(shape))
    room = np.empty(count * 4 + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start:start + count * 4].view(np.float32).reshape(shape)


def apply(str kernel_name, str function, const float[::1] x):
    """A kernel's own exp, tanh or sigmoid of x [n] -> [n]: what the tests measure."""
    cdef const fused_kernel* kernel = find_kernel(kernel_name)
    cdef float[::1] y = np.empty(x.shape[0], np.float32)
    cdef float_mode mode
    if not kernel:
        raise ValueError(f"this machine lacks the {kernel_name} kernel")
    if x.shape[0]:
        mode = flush_denormals()
        if function == "exp":
            kernel.exponential(x.shape[0], &x[0], &y[0])
        else:
            kernel.activation(FUNCTIONS.index(function), 1, x.shape[0], &x[0], &y[0])
        restore_float_mode(mode)
    return np.asarray(y)
