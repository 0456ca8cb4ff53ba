"""Extensions and compiler directives; all else stands in pyproject.toml."""

import os
import platform
import sys

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
    sys.exit("streamlstm builds on Linux x86-64 and aarch64 only; use one of these.")

# STREAMLSTM_CHECKED=1 builds with bounds and overflow checks, for one run of the tests.
checked = os.environ.get("STREAMLSTM_CHECKED") == "1"

directives = {
    "language_level": 3,
    "boundscheck": checked,
    "wraparound": checked,
    "initializedcheck": checked,
    "overflowcheck": checked,
    "cdivision": not checked,
    "embedsignature": True,
    "freethreading_compatible": False,
}


CORE = ("arena", "engine", "head", "head_steps", "network", "threads")
TARGETS = ("avx512", "avx2", "portable")
KERNELS = "src_pyx/streamlstm/kernels"


def extension(name: str, *c_sources: str) -> Extension:
    return Extension(
        f"streamlstm.{name}",
        [f"src_pyx/streamlstm/{name.replace('.', '/')}.pyx", *c_sources],
        include_dirs=[np.get_include(), KERNELS],
        depends=[f"{KERNELS}/{h}.h" for h in ("kernel", "functions", "cells", "fused")],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        # A result must not depend on which multiply-adds the compiler chose to fuse.
        extra_compile_args=["-O3", "-ffp-contract=off"],
    )


setup(
    ext_modules=cythonize(
        [
            *(extension(f"core.{name}") for name in CORE),
            extension("kernels.blas"),
            # One file per target, each with its target pragma.
            extension("kernels.table", *(f"{KERNELS}/{t}.c" for t in TARGETS)),
        ],
        include_path=["src_pyx"],
        compiler_directives=directives,
        build_dir="build/checked" if checked else "build/cython",
    ),
)
