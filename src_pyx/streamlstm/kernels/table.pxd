"""The table of kernels; see table.pyx."""
from streamlstm.kernels.kernel cimport Kernel


cdef class Row:
    cdef const Kernel* kernel
    cdef readonly str name          # what STREAMLSTM_KERNEL calls it
    cdef readonly str arithmetic    # kernels of one class give the same bits
    cdef readonly str weights       # their format
    cdef readonly str numbers       # float32 or float64: of events, states and answers
    cdef readonly int lanes         # of a panel; 0: it has no panels
    cdef readonly bint same_bits    # a stream's bits are its own, whatever its company
    cdef readonly bint supported    # by this CPU and this build
