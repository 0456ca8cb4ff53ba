"""Extensions and compiler directives; all else stands in pyproject.toml."""

import os
import platform
import sys
from pathlib import Path

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


PYX = Path("src_pyx/streamlstm")
KERNELS = PYX / "kernels"
# One file a target, each with its target pragma.
TARGETS = [str(source) for source in sorted(KERNELS.glob("*.c"))]


def extension(source: Path) -> Extension:
    name = ".".join(source.relative_to("src_pyx").with_suffix("").parts)
    return Extension(
        name,
        [str(source), *(TARGETS if source.stem == "table" else [])],
        include_dirs=[np.get_include(), str(KERNELS)],
        depends=[str(header) for header in KERNELS.glob("*.h")],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        # A result must not depend on which multiply-adds the compiler chose to fuse.
        extra_compile_args=["-O3", "-ffp-contract=off"],
    )


setup(
    ext_modules=cythonize(
        [extension(source) for source in sorted(PYX.rglob("*.pyx"))],
        include_path=["src_pyx"],
        compiler_directives=directives,
        build_dir="build/checked" if checked else "build/cython",
    ),
)
