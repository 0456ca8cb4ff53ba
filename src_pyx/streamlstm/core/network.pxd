"""A model's weights, ready to run; see network.pyx."""
from streamlstm.kernels.kernel cimport Kernel, Layer
from streamlstm.kernels.table cimport Row


# All that a thread without the GIL needs of a Network. Read only.
ctypedef struct Plan:
    Kernel kernel                   # a copy, so that its functions are a load away
    Layer* layers
    int layer_count
    int number_bytes                # of a number of an event, a state, an answer
    Py_ssize_t inputs, outputs
    Py_ssize_t width, gates_width   # widest activation and gate vectors
    Py_ssize_t m_width              # of what projections and GRUs keep between two products
    Py_ssize_t block                # (stream, step) pairs in a block of work
    Py_ssize_t work_bytes           # of the scratch that forward() wants
    bint x_scaled, y_scaled         # whether there is anything to scale
    double* x_mean
    double* x_scale                 # 1 / std
    double* y_mean
    double* y_scale                 # std


cdef class Network:
    cdef Plan plan
    cdef readonly Py_ssize_t state_size     # numbers in a session's row
    cdef readonly Py_ssize_t macs           # multiply-adds of one step of one stream
    cdef readonly bytes initial_state
    cdef readonly Row row                   # the kernel it runs by
    cdef list owned                         # keeps the arrays behind the pointers alive

    cdef int add_layer(self, Layer* to, layer) except -1
    cdef int add_options(self, Layer* to, layer) except -1
    cdef int add_state(self, Layer* to, layer) except -1
    cdef void* own(self, array) except NULL


cdef void forward(
    const Plan* plan, char** rows, Py_ssize_t n, Py_ssize_t steps,
    const void* x, void* y, void* work,
) noexcept nogil
