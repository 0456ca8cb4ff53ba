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

# STREAMLSTM_BUILD=strict makes every warning of the C compiler an error; =sanitized also builds for
# one run of the tests under AddressSanitizer and UBSan, with Cython's checks of bounds and
# overflows (.ci/run shows how).
build = os.environ.get("STREAMLSTM_BUILD", "")
if build not in ("", "strict", "sanitized"):
    sys.exit(f"STREAMLSTM_BUILD is {build!r}; it may be strict or sanitized")
checked = build == "sanitized"
warnings = ["-Wall", "-Wextra", "-Werror"] if build else []
sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
sanitizers = [*sanitizers, "-fno-wrapv"] if checked else []  # Python's -fwrapv would hide overflows

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
        extra_compile_args=["-O3", "-ffp-contract=off", *warnings, *sanitizers],
        extra_link_args=sanitizers,
    )


setup(
    ext_modules=cythonize(
        [extension(source) for source in sorted(PYX.rglob("*.pyx"))],
        include_path=["src_pyx"],
        compiler_directives=directives,
        build_dir="build/sanitized" if checked else "build/cython",
    ),
)
