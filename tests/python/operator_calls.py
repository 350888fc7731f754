# SPDX-License-Identifier: Apache-2.0
"""One good call of every operator, as data: leak, compile and error tests start from these and change what they
need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import evergemm  # noqa: F401  registers torch.ops.evergemm
import torch

FP8 = torch.float8_e4m3fn
M, N, K = 6, 48, 256


@dataclasses.dataclass(frozen=True)
class Call:
    """`make()` gives fresh arguments by name, in the order of the schema; `written` names those that the call
    changes."""

    name: str  # "scaled_mm", "scaled_mm.out"
    make: Callable[[], dict]
    keyword_only: tuple[str, ...] = ()
    written: tuple[str, ...] = ()

    @property
    def overload(self) -> torch._ops.OpOverload:
        base, _, overload = self.name.partition(".")
        return getattr(getattr(torch.ops.evergemm, base), overload or "default")

    def split(self, arguments: dict) -> tuple[tuple, dict]:
        positional = tuple(value for name, value in arguments.items() if name not in self.keyword_only)
        return positional, {name: arguments[name] for name in self.keyword_only}

    def run(self, arguments: dict | None = None):
        positional, keywords = self.split(self.make() if arguments is None else arguments)
        return self.overload(*positional, **keywords)


def int8_matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(-128, 128, (rows, columns), dtype=torch.int8)


def fp8_matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns).to(FP8)


def _gemm(dtype: torch.dtype = torch.int8) -> dict:
    matrix = int8_matrix if dtype == torch.int8 else fp8_matrix
    return {
        "a": matrix(M, K),
        "b": matrix(N, K).t(),
        "scale_a": torch.rand(M, 1) + 0.5,
        "scale_b": torch.rand(N) + 0.5,
    }


def _options() -> dict:
    return {"fast_accumulation": True, "deterministic": False}


def _azp() -> dict:
    return {
        "azp_adj": torch.randint(-1000, 1000, (N,), dtype=torch.int32),
        "azp": torch.randint(-128, 128, (M,), dtype=torch.int32),
        "bias": torch.randn(N, dtype=torch.bfloat16),
    }


def _bias() -> dict:
    return {"bias": torch.randn(N, dtype=torch.bfloat16)}


def _out() -> dict:
    return {"out": torch.empty(M, N, dtype=torch.bfloat16)}


def _x() -> torch.Tensor:
    return torch.randn(M, K, dtype=torch.bfloat16)


def _q(columns: int = K, dtype: torch.dtype = FP8) -> torch.Tensor:
    return torch.empty(M, columns, dtype=dtype)


def _scale(columns: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(M, columns, dtype=dtype)


def _dropin_gemm() -> dict:
    gemm = _gemm()
    return {**_out(), "a": gemm["a"], "b": gemm["b"], "a_scales": gemm["scale_a"], "b_scales": gemm["scale_b"]}


def _packed_scale() -> torch.Tensor:
    return torch.empty_strided((M, 1), (1, 8), dtype=torch.int32)


def _norm() -> dict:
    return {"x": _x(), "weight": torch.randn(K, dtype=torch.bfloat16), "eps": 1e-6, "group_size": 0}


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


E, TOP_K, INTERMEDIATE = 3, 2, 32


def _topk_ids() -> torch.Tensor:
    return torch.randint(-1, E + 1, (M, TOP_K), dtype=torch.int32)


def _grouped(rows: str, values: torch.Tensor, a: torch.Tensor) -> dict:
    return {
        "a": a,
        "b": fp8_matrix(E * N, K).view(E, N, K).transpose(1, 2),
        "scale_a": torch.rand(a.shape[:-1]) + 0.5,
        "scale_b": torch.rand(E, N) + 0.5,
        rows: values,
    }


def _ragged() -> dict:
    return _grouped("expert_offsets", int32(0, 2, 2, 5), fp8_matrix(M, K))


def _masked() -> dict:
    return _grouped("rows_per_expert", int32(1, 0, 2), fp8_matrix(E * 2, K).view(E, 2, K))


def _layer() -> dict:
    return {
        "x": _x(),
        "w13": int8_matrix(E * 2 * INTERMEDIATE, K).view(E, 2 * INTERMEDIATE, K),
        "w2": int8_matrix(E * K, INTERMEDIATE).view(E, K, INTERMEDIATE),
        "w13_scale": torch.rand(E, 2 * INTERMEDIATE) / 100,
        "w2_scale": torch.rand(E, K) / 100,
        "topk_weights": torch.rand(M, TOP_K),
        "topk_ids": _topk_ids(),
        "expert_map": None,
        "a1_scale": None,
        "a2_scale": torch.ones(1),
        "activation": 0,
        "apply_router_weight_on_input": False,
    }


def _cutlass_moe() -> dict:
    pitch = torch.full((E,), K, dtype=torch.int64)
    return {
        "out_tensors": torch.zeros(M, N, dtype=torch.bfloat16),
        "a_tensors": fp8_matrix(M, K),
        "b_tensors": fp8_matrix(E * N, K).view(E, N, K),
        "a_scales": torch.rand(M, 1) + 0.5,
        "b_scales": torch.rand(E, N, 1) + 0.5,
        "expert_offsets": torch.tensor([0, 2, 2]),
        "problem_sizes": int32(2, N, K, 0, N, K, 4, N, K).view(E, 3),
        "a_strides": pitch,
        "b_strides": pitch.clone(),
        "c_strides": torch.full((E,), N, dtype=torch.int64),
        "per_act_token": True,
        "per_out_ch": True,
    }


def _sizes() -> torch.Tensor:
    return torch.zeros(E, 3, dtype=torch.int32)


def _rows() -> torch.Tensor:
    return torch.zeros(M * TOP_K, dtype=torch.int32)


_SIZES = ("problem_sizes1", "problem_sizes2")
_GEMM_OUT = ("fast_accumulation", "deterministic", "out")
_PAIR = ("out_q", "out_scale")


def _pair(columns: int = K, groups: int = 1) -> dict:
    return {"out_q": _q(columns), "out_scale": _scale(groups)}


CALLS = (
    Call(
        "scaled_mm",
        lambda: {**_gemm(), **_bias(), "out_dtype": torch.bfloat16, **_options()},
        ("fast_accumulation", "deterministic"),
    ),
    Call("scaled_mm.out", lambda: {**_gemm(FP8), **_bias(), **_options(), **_out()}, _GEMM_OUT, ("out",)),
    Call("scaled_mm_azp", lambda: {**_gemm(), **_azp(), "out_dtype": torch.bfloat16}),
    Call("scaled_mm_azp.out", lambda: {**_gemm(), **_azp(), **_out()}, ("out",), ("out",)),
    Call(
        "_scaled_mm_row",
        lambda: {**_gemm(), **_azp(), "out_dtype": torch.bfloat16, **_options(), "row": 0, "overlap": True},
    ),
    Call("quantize_per_tensor", lambda: {"x": _x(), "dtype": torch.int8}),
    Call("quantize_per_tensor.out", lambda: {"x": _x(), "out_q": _q(), "out_scale": torch.empty(1)}, _PAIR, _PAIR),
    Call("quantize_static", lambda: {"x": _x(), "scale": torch.rand(M, 1) + 0.5, "dtype": FP8}),
    Call(
        "quantize_static.out", lambda: {"x": _x(), "scale": torch.rand(1) + 0.5, "out_q": _q()}, ("out_q",), ("out_q",)
    ),
    Call("quantize_per_token", lambda: {"x": _x(), "dtype": FP8, "scale_upper_bound": torch.ones(1)}),
    Call("quantize_per_token.out", lambda: {"x": _x(), "scale_upper_bound": torch.ones(1), **_pair()}, _PAIR, _PAIR),
    Call("quantize_per_token_asymmetric", lambda: {"x": _x()}),
    Call(
        "quantize_per_token_asymmetric.out",
        lambda: {"x": _x(), "out_q": _q(dtype=torch.int8), "out_scale": _scale(), "out_azp": _scale(dtype=torch.int32)},
        (*_PAIR, "out_azp"),
        (*_PAIR, "out_azp"),
    ),
    Call(
        "quantize_per_group",
        lambda: {
            "x": _x(),
            "group_size": 128,
            "dtype": FP8,
            "column_major_scales": True,
            "power_of_two_scales": False,
        },
    ),
    Call(
        "quantize_per_group.out",
        lambda: {
            "x": _x(),
            "group_size": 128,
            "column_major_scales": False,
            "power_of_two_scales": True,
            **_pair(groups=2),
        },
        _PAIR,
        _PAIR,
    ),
    Call("quantize_per_block", lambda: {"w": _x(), "block_n": 128, "block_k": 128, "dtype": FP8}),
    Call(
        "quantize_per_block.out",
        lambda: {"w": _x(), "block_n": 128, "block_k": 128, "out_q": _q(), "out_scale": torch.empty(1, 2)},
        _PAIR,
        _PAIR,
    ),
    Call(
        "activate_and_quantize",
        lambda: {"x": _x(), "activation": 0, "gated": True, "group_size": 0, "dtype": torch.int8},
    ),
    Call(
        "activate_and_quantize.out",
        lambda: {"x": _x(), "activation": 1, "gated": True, "group_size": 64, **_pair(K // 2, 2)},
        _PAIR,
        _PAIR,
    ),
    Call("rms_norm_quantize", lambda: {**_norm(), "dtype": FP8, "residual": _x()}, (), ("residual",)),
    Call("rms_norm_quantize.out", lambda: {**_norm(), "residual": _x(), **_pair()}, _PAIR, ("residual", *_PAIR)),
    Call("cutlass_scaled_mm", lambda: {**_dropin_gemm(), **_bias()}, (), ("out",)),
    Call("cutlass_scaled_mm_azp", lambda: {**_dropin_gemm(), **_azp()}, (), ("out",)),
    Call(
        "quantized_linear",
        lambda: {
            "x": _x(),
            "weight": int8_matrix(N, K),
            "weight_scale": torch.rand(N, 1) + 0.5,
            "input_scale": None,
            "azp_adj": torch.randint(-1000, 1000, (N,), dtype=torch.int32),
            "bias": torch.randn(N, dtype=torch.bfloat16),
            **_options(),
        },
        ("fast_accumulation", "deterministic"),
    ),
    Call("permute_cols", lambda: {"A": _x(), "perm": torch.randperm(K).to(torch.int32)}),
    Call(
        "per_token_group_fp8_quant",
        lambda: {
            "input": _x(),
            "output_q": _q(),
            "output_s": _scale(2),
            "group_size": 128,
            "eps": 1e-10,
            "fp8_min": -448.0,
            "fp8_max": 448.0,
            "scale_ue8m0": False,
            "dummy_is_scale_transposed": False,
            "dummy_is_tma_aligned": False,
        },
        (),
        ("output_q", "output_s"),
    ),
    Call(
        "per_token_group_fp8_quant_packed",
        lambda: {
            "input": _x(),
            "output_q": _q(),
            "output_s_packed": _packed_scale(),
            "group_size": 128,
            "eps": 1e-10,
            "fp8_min": -448.0,
            "fp8_max": 448.0,
        },
        (),
        ("output_q", "output_s_packed"),
    ),
    Call(
        "per_token_group_quant_int8",
        lambda: {
            "input": _x(),
            "output_q": _q(dtype=torch.int8),
            "output_s": _scale(2),
            "group_size": 128,
            "eps": 1e-10,
            "int8_min": -128.0,
            "int8_max": 127.0,
        },
        (),
        ("output_q", "output_s"),
    ),
    Call("moe_route", lambda: {"topk_ids": _topk_ids(), "num_local_experts": E, "expert_map": int32(2, -1, 0)}),
    Call(
        "grouped_scaled_mm",
        lambda: {**_ragged(), "out_dtype": torch.bfloat16, **_options()},
        ("fast_accumulation", "deterministic"),
    ),
    Call(
        "grouped_scaled_mm.out",
        lambda: {**_ragged(), **_options(), "out": torch.zeros(M, N, dtype=torch.bfloat16)},
        _GEMM_OUT,
        ("out",),
    ),
    Call(
        "grouped_scaled_mm_masked",
        lambda: {**_masked(), "out_dtype": torch.float32, **_options()},
        ("fast_accumulation", "deterministic"),
    ),
    Call(
        "grouped_scaled_mm_masked.out",
        lambda: {**_masked(), **_options(), "out": torch.zeros(E, 2, N, dtype=torch.float16)},
        _GEMM_OUT,
        ("out",),
    ),
    Call(
        "moe_gather_quantize",
        lambda: {
            "x": _x(),
            "source_row": int32(5, 0, -1, 3),
            "scale": None,
            "row_weights": torch.rand(4),
            "group_size": 128,
            "dtype": FP8,
        },
    ),
    Call(
        "moe_combine",
        lambda: {
            "y": _x(),
            "slot": int32(0, 5, -1, 3).view(2, 2),
            "topk_weights": torch.rand(2, 2),
            "out_dtype": torch.float16,
        },
    ),
    Call("fused_moe", lambda: {**_layer(), **_options()}, ("fast_accumulation", "deterministic")),
    Call("cutlass_moe_mm", _cutlass_moe, (), ("out_tensors",)),
    Call(
        "get_cutlass_moe_mm_data",
        lambda: {
            "topk_ids": _topk_ids(),
            "expert_offsets": torch.zeros(E + 1, dtype=torch.int32),
            "problem_sizes1": _sizes(),
            "problem_sizes2": _sizes(),
            "input_permutation": _rows(),
            "output_permutation": _rows(),
            "num_experts": E,
            "n": INTERMEDIATE,
            "k": K,
            "blockscale_offsets": None,
            "is_gated": True,
        },
        (),
        ("expert_offsets", *_SIZES, "input_permutation", "output_permutation"),
    ),
    Call(
        "get_cutlass_moe_mm_problem_sizes_from_expert_offsets",
        lambda: {
            "expert_first_token_offset": torch.tensor([0, 2, 2, 5]),
            "problem_sizes1": _sizes(),
            "problem_sizes2": _sizes(),
            "n": INTERMEDIATE,
            "k": K,
            "swap_ab": False,
        },
        (),
        _SIZES,
    ),
    Call(
        "get_cutlass_batched_moe_mm_data",
        lambda: {
            "expert_offsets": torch.zeros(E, dtype=torch.int32),
            "problem_sizes1": _sizes(),
            "problem_sizes2": _sizes(),
            "expert_num_tokens": int32(1, 0, 2),
            "num_local_experts": E,
            "padded_m": 2,
            "n": INTERMEDIATE,
            "k": K,
        },
        (),
        ("expert_offsets", *_SIZES),
    ),
)

BY_NAME = {call.name: call for call in CALLS}
