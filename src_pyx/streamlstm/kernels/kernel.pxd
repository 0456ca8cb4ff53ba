"""kernel.h for Cython."""

cdef extern from "kernel.h":
    # Kinds; functions, in the order of layers.FUNCTIONS; couplings; types of numbers.
    enum:
        LSTM, GRU, DENSE, ACTIVATION, EMBEDDING
    enum:
        LINEAR, TANH, SIGMOID, RELU, HARD_SIGMOID, HARD_SIGMOID6, SOFTMAX
    enum:
        UNCOUPLED, COUPLED_I, COUPLED_F
    enum:
        FLOAT32, FLOAT64
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
        const void* b
        const void* peep
        const void* norm
        const void* w_p
        const void* b_p

    ctypedef struct Scratch:
        void* z
        void* m
        void* h

    ctypedef struct Kernel:
        const char* name
        const char* arithmetic
        const char* weights
        int numbers
        int lanes
        int same_bits
        int own_threads
        int (*supported)() noexcept nogil
        ptrdiff_t (*panel_bytes)(int gates, int units, int depth) noexcept nogil
        void (*pack)(int gates, int units, int depth, const void* w, char* to,
                     ptrdiff_t stride) noexcept nogil
        void (*recurrent)(const Layer*, ptrdiff_t n, ptrdiff_t steps, char** rows, const void* x,
                          const Scratch*, void* out) noexcept nogil
        void (*dense)(const Layer*, ptrdiff_t n, const void* x, void* out) noexcept nogil
        void (*activation)(int function, ptrdiff_t n, ptrdiff_t units, const void* x,
                           void* out) noexcept nogil
        void (*exponential)(ptrdiff_t n, const void* x, void* y) noexcept nogil

    ctypedef unsigned long float_mode
    float_mode flush_denormals() noexcept nogil
    void restore_float_mode(float_mode) noexcept nogil
    void prefetch "__builtin_prefetch" (const void*) noexcept nogil
