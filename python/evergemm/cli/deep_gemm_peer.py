# SPDX-License-Identifier: Apache-2.0
"""DeepGEMM's products with block scales, a peer of the GPU's benchmarks where the module `deep_gemm` is installed and loads. It
compiles its kernels at their first call. Must not go here: clocks, checks, other peers (gpu_bench.py, moe_report.py).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence

import torch

NAME = "DeepGEMM"
MASKED, CONTIGUOUS = f"{NAME}, masked", f"{NAME}, contiguous"


def version() -> str:
    """The package and its version, or that there is none."""
    for package in ("deep_gemm", "sgl-deep-gemm"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _module():
    if torch.cuda.get_device_capability() != (9, 0):  # its later kernels want scales that are powers of two
        return None
    try:
        import deep_gemm
    except Exception:  # built for another torch, no toolkit to be found: an AssertionError among others
        return None
    return deep_gemm if hasattr(deep_gemm, "get_mn_major_tma_aligned_tensor") else None  # before 2.0: other names


def dense(
    a: torch.Tensor, weights: Sequence[torch.Tensor], scale_a: torch.Tensor, scale_b: torch.Tensor
) -> list[Callable[[int], torch.Tensor]]:
    """a [m, k] and weights [n, k] of fp8, scale_a [m, k / 128], scale_b [k / 128, n / 128] float32; call i takes weight i of the
    rotation and returns [m, n] bfloat16. [] where there is no DeepGEMM."""
    module = _module()
    if module is None:
        return []
    try:
        scale_a = module.get_mn_major_tma_aligned_tensor(scale_a)
    except Exception:  # it compiles a kernel where the scales' pitch is no multiple of 16 bytes
        return []
    scale_b = scale_b.t().contiguous()

    def call(i: int) -> torch.Tensor:
        weight = weights[i % len(weights)]
        out = torch.empty(len(a), len(weight), dtype=torch.bfloat16, device=a.device)
        module.fp8_gemm_nt((a, scale_a), (weight, scale_b), out)
        return out

    return [call]


def grouped(
    a: torch.Tensor, codes: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, counts: Sequence[int]
) -> dict[str, tuple[Callable[[int], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]]:
    """a [rows, k], the rows of expert after expert, codes [experts, n, k] of fp8, scale_a [rows, k / 128], scale_b [experts,
    k / 128, n / 128] float32. Name -> (the product alone, what puts its rows in the order of a): its own two layouts, into
    which the operands are brought before."""
    module = _module()
    try:
        return {} if module is None else _grouped(module, a, codes, scale_a, scale_b, counts)
    except Exception:  # it compiles kernels for its layouts, too
        return {}


def _grouped(module, a, codes, scale_a, scale_b, counts):
    experts, n, k = codes.shape
    rows = torch.arange(len(a), device=a.device)
    of = torch.repeat_interleave(torch.arange(experts), torch.tensor(counts)).to(a.device)
    first = torch.tensor([0, *counts]).cumsum(0)[:-1].to(a.device)
    scale_b = scale_b.transpose(1, 2).contiguous()

    def spread(places: int, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes_there = torch.zeros(places, k, dtype=torch.uint8, device=a.device)
        scales_there = torch.ones(places, scale_a.shape[1], device=a.device)
        codes_there[place] = a.view(torch.uint8)
        scales_there[place] = scale_a
        return codes_there.view(a.dtype), scales_there

    most = -(-max(counts) // 256) * 256  # whole tiles: what it writes past an expert's rows stays inside its places
    in_masked = of * most + rows - first[of]
    x, x_scale = spread(experts * most, in_masked)
    masked = (x.view(experts, most, k), module.get_mn_major_tma_aligned_tensor(x_scale.view(experts, most, -1)))
    masked_out = torch.empty(experts, most, n, dtype=torch.bfloat16, device=a.device)
    masked_counts = torch.tensor(counts, dtype=torch.int32, device=a.device)
    expected = max(1, round(len(a) / experts))

    product = getattr(module, "m_grouped_fp8_gemm_nt_masked", None) or module.fp8_m_grouped_gemm_nt_masked

    def call_masked(_: int) -> torch.Tensor:
        product(masked, (codes, scale_b), masked_out, masked_counts, expected)
        return masked_out

    whole = module.get_mk_alignment_for_contiguous_layout()
    padded = torch.tensor([-(-count // whole) * whole for count in counts])
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), padded.cumsum(0)]).to(a.device)
    in_contiguous = begins[of] + rows - first[of]
    y, y_scale = spread(int(padded.sum()), in_contiguous)
    contiguous = (y, module.get_mn_major_tma_aligned_tensor(y_scale))
    contiguous_out = torch.empty(len(y), n, dtype=torch.bfloat16, device=a.device)
    expert_of = torch.repeat_interleave(torch.arange(experts, dtype=torch.int32), padded).to(a.device)

    def call_contiguous(_: int) -> torch.Tensor:
        module.m_grouped_fp8_gemm_nt_contiguous(contiguous, (codes, scale_b), contiguous_out, expert_of)
        return contiguous_out

    return {
        MASKED: (call_masked, lambda out: out.view(-1, n)[in_masked]),
        CONTIGUOUS: (call_contiguous, lambda out: out[in_contiguous]),
    }
