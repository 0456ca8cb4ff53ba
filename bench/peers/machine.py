"""What a figure is worth nothing without: the machine, the versions and the kernel that ran."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import streamlstm as sl
from streamlstm import kernels

PACKAGES = ("numpy", "scipy", "torch", "onnxruntime", "ai-edge-litert")


def facts() -> dict[str, Any]:
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"streamlstm": sl.__version__, **versions()},
        "kernels": kernels.config(),
    }


def cpu() -> str:
    """The model's name, with family and model where the name alone says little (VMs)."""
    told: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    if "model name" not in told:
        return platform.machine()
    return f"{told['model name']} (family {told['cpu family']}, model {told['model']})"


def caches() -> dict[str, str]:
    """Size of each cache that the first core reads data through."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / f).read_text().strip() for f in ("level", "type", "size"))
        if kind != "Instruction":
            kib = int(size.removesuffix("K"))
            found[f"L{level}"] = f"{kib // 1024} MiB" if kib >= 1024 else f"{kib} KiB"
    return found


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def sentence(facts: dict[str, Any]) -> str:
    """The facts as one line under a table or a plot."""
    caches = ", ".join(f"{level} {size}" for level, size in facts["caches"].items())
    versions = ", ".join(f"{name} {v}" for name, v in facts["versions"].items())
    kernel = facts["kernels"]["float32"]["kernel"]
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {caches}; one thread, float32, "
        f"{kernel} kernel; Python {facts['python']}, {versions}"
    )
