"""A layer's weights as a kernel reads them; see pack.pyx."""
from streamlstm.kernels.kernel cimport Kernel, Layer

cdef int pack_layer(Layer* to, layer, const Kernel* kernel, list owned) except -1
