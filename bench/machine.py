"""What a measurement was made on; results of different machines are not to be compared."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import threadpoolctl

import streamlstm as sl
from streamlstm import kernels

PACKAGES = ("numpy", "scipy", "pyzmq", "torch", "onnxruntime", "ai-edge-litert")
# CPU features that the kernels and BLAS choose by.
FLAGS = (
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "amx_tile",
    "asimd",
)


def facts() -> dict[str, Any]:
    """CPU, caches, BLAS and versions, as JSON's types."""
    cpu = _cpu()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return {
        # A virtual CPU's name says little; family and model tell which it is.
        "cpu": " ".join(
            [cpu.get("model name", platform.machine())]
            + [f"{key} {cpu[key]}" for key in ("cpu family", "model") if key in cpu]
        ),
        "cpus": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "caches": _caches(),
        "blas": _blas(),
        "versions": {
            "python": platform.python_version(),
            "streamlstm": sl.__version__,
            **_versions(),
        },
        "kernels": kernels.config(),
    }


def sentence(facts: dict[str, Any]) -> str:
    """The facts as one line under a table or a plot."""
    caches = ", ".join(f"{level} {size}" for level, size in facts["caches"].items())
    versions = ", ".join(f"{name} {v}" for name, v in facts["versions"].items())
    kernel = facts["kernels"]["float32"]["kernel"]
    return f"{facts['cpu']}, {facts['cpus']} cores, {caches}; {kernel} kernel; {versions}"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _cpu() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _caches() -> dict[str, str]:
    """{"L1 Data": "32K", ...} of the first CPU; empty where the system hides them."""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        caches[f"L{level} {kind}"] = size
    return caches


def _blas() -> list[dict[str, Any]]:
    wanted = ("internal_api", "version", "architecture", "num_threads")
    return [
        {key: library[key] for key in wanted if key in library}
        | {"of": Path(library["filepath"]).parent.name}
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    ]
