# SPDX-License-Identifier: Apache-2.0
"""This machine, read without torch and without creating a context on any GPU: /proc and NVML.

Used by doctor and bench. Must not go here: judgement.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path

from .._architecture import architecture_of_capability

FEATURES = {
    # name in /proc/cpuinfo -> what people call it; those that rows ask for
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512F",
    "avx512bw": "AVX-512BW",
    "avx512dq": "AVX-512DQ",
    "avx512vl": "AVX-512VL",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512vbmi": "AVX-512 VBMI",
}


def processor() -> dict:
    """The processor: model, threads that this process may use, features that rows ask for, memory."""
    model, flags = "", set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    except OSError:
        pass
    memory = 0
    try:
        found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        memory = int(found[1]) * 1024 if found else 0
    except OSError:
        pass
    return {
        "model": model or platform.processor() or "unknown",
        "machine": platform.machine(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [name for name in FEATURES if name in flags],
        "memory_bytes": memory,
    }


def gpus() -> tuple[str | None, list[dict], str]:
    """(driver version, GPUs with name, capability and memory_bytes, why there are none)."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        present = Path("/proc/driver/nvidia/version").exists()
        return None, [], "driver without libnvidia-ml.so.1" if present else "no NVIDIA driver"
    if nvml.nvmlInit_v2() != 0:
        return None, [], "NVML does not start (a driver that was updated without a restart?)"
    try:
        text = ctypes.create_string_buffer(96)
        driver = text.value.decode() if nvml.nvmlSystemGetDriverVersion(text, 96) == 0 else None
        count = ctypes.c_uint()
        found = []
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
            for index in range(count.value):
                handle = ctypes.c_void_p()
                if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
                    continue
                name = ctypes.create_string_buffer(96)
                nvml.nvmlDeviceGetName(handle, name, 96)
                major, minor = ctypes.c_int(), ctypes.c_int()
                nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
                memory = (ctypes.c_ulonglong * 3)()
                nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
                capability = f"{major.value}.{minor.value}"
                found.append({"name": name.value.decode(), "capability": capability, "memory_bytes": memory[0]})
        return driver, found, "" if found else "a driver but no GPU"
    finally:
        nvml.nvmlShutdown()


def architecture(capability: str) -> str:
    """ "9.0" -> "sm90a", "8.0" -> "sm80"."""
    major, minor = capability.split(".")
    return architecture_of_capability(int(major), int(minor))
