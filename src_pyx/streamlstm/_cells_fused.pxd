"""The fused float32 kernels; see simd/kernel.h and _cells_fused.pyx."""

cdef extern from "simd/kernel.h":
    ctypedef struct fused_layer:
        int inputs, units
        ptrdiff_t h, c
        int activation
        const float* w
        const float* b

    ctypedef struct fused_kernel:
        const char* arithmetic
        int lanes
        void (*lstm)(const fused_layer*, ptrdiff_t n, ptrdiff_t steps, char** rows,
                     const float* x, float* z, float* out) noexcept nogil
        void (*dense)(const fused_layer*, ptrdiff_t n, const float* x, float* out) noexcept nogil
        void (*apply)(int function, ptrdiff_t n, const float* x, float* y) noexcept nogil

    const fused_kernel* streamlstm_kernel_avx512() noexcept nogil
    const fused_kernel* streamlstm_kernel_avx2() noexcept nogil
    const fused_kernel* streamlstm_kernel_portable() noexcept nogil

    ctypedef unsigned long float_mode
    float_mode flush_denormals() noexcept nogil
    void restore_float_mode(float_mode) noexcept nogil
    void prefetch "__builtin_prefetch" (const void*) noexcept nogil


cdef const fused_kernel* find_kernel(str name) except? NULL
