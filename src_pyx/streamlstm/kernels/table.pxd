"""The fused float32 kernels, and what a layer is to any kernel; see kernel.h."""

cdef extern from "kernel.h":
    # Kinds; functions, in the order of layers.FUNCTIONS; couplings.
    enum:
        LSTM, GRU, DENSE, ACTIVATION, EMBEDDING
    enum:
        LINEAR, TANH, SIGMOID, RELU, HARD_SIGMOID, HARD_SIGMOID6, SOFTMAX
    enum:
        UNCOUPLED, COUPLED_I, COUPLED_F
    const double SATURATION
    const double NORM_EPSILON

    ctypedef struct Layer:
        int kind
        int inputs, units, outputs
        ptrdiff_t h, c
        int function
        int gate, candidate, output
        int plain, coupled, reset_after
        double clip_gates, clip_cell, clip_projection
        const void* w
        const void* w_h
        const void* b
        const void* peep
        const void* norm
        const void* w_p
        const void* b_p

    ctypedef struct fused_kernel:
        const char* arithmetic
        int lanes
        void (*recurrent)(const Layer*, ptrdiff_t n, ptrdiff_t steps, char** rows, const float* x,
                          float* z, float* m, float* out) noexcept nogil
        void (*dense)(const Layer*, ptrdiff_t n, const float* x, float* out) noexcept nogil
        void (*activation)(int function, ptrdiff_t n, ptrdiff_t units, const float* x,
                           float* out) noexcept nogil
        void (*exponential)(ptrdiff_t n, const float* x, float* y) noexcept nogil

    const fused_kernel* streamlstm_kernel_avx512() noexcept nogil
    const fused_kernel* streamlstm_kernel_avx2() noexcept nogil
    const fused_kernel* streamlstm_kernel_portable() noexcept nogil

    ctypedef unsigned long float_mode
    float_mode flush_denormals() noexcept nogil
    void restore_float_mode(float_mode) noexcept nogil
    void prefetch "__builtin_prefetch" (const void*) noexcept nogil


cdef const fused_kernel* find_kernel(str name) except? NULL
