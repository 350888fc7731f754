# SPDX-License-Identifier: Apache-2.0
"""`evergemm explain`: evergemm.explain() from the command line. Must not go here: rules and reasons."""

from __future__ import annotations

import argparse
import json


def _scales(text: str):
    return tuple(text.split(",")) if "," in text else text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: evergemm explain --m 1 --n 7168 --k 2048 --dtype fp8 --scales blockwise --arch sm90a"
    parser.add_argument("operator", nargs="?", default="scaled_mm", help="scaled_mm (default) or scaled_mm_azp")
    parser.add_argument("--m", type=int, required=True, help="rows of activations (tokens)")
    parser.add_argument("--n", type=int, required=True, help="output features")
    parser.add_argument("--k", type=int, required=True, help="reduction: input features")
    parser.add_argument("--dtype", default="int8", help="int8 (default) or fp8")
    parser.add_argument(
        "--scales",
        type=_scales,
        default="rowwise",
        help="tensorwise, rowwise (default), blockwise (fp8), or two with a comma: of a, of b",
    )
    parser.add_argument(
        "--arch", help="cpu (default: this processor), cpu-portable, cpu-avx2, cpu-avx512, cpu-avx512_vnni, sm90a, ..."
    )
    parser.add_argument("--out-dtype", default="bfloat16", help="bfloat16 (default), float16 or float32")
    parser.add_argument("--bias", action="store_true", help="with a bias")
    parser.add_argument("--azp", action="store_true", help="scaled_mm_azp: a zero point for each row")
    parser.add_argument("--promoted", action="store_true", help="fp8: fast_accumulation=False")
    parser.add_argument("--deterministic", action="store_true", help="one order of accumulation for every m")
    parser.add_argument("--a-stride", type=int, help="elements from a row of a to the next; default k")
    parser.add_argument("--b-stride", type=int, help="elements from a column of b to the next; default k")
    parser.add_argument("--rows", action="store_true", help="name every row that is rejected or could also run")
    parser.add_argument("--json", action="store_true", help="the library's answer as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan; exit code 0, or 1 where nothing runs the problem."""
    from ..explanation import explain

    plan = explain(
        arguments.operator,
        m=arguments.m,
        n=arguments.n,
        k=arguments.k,
        dtype=arguments.dtype,
        scales=arguments.scales,
        arch=arguments.arch,
        bias=arguments.bias,
        out_dtype=arguments.out_dtype,
        azp=arguments.azp,
        fast_accumulation=not arguments.promoted,
        deterministic=arguments.deterministic,
        a_stride=arguments.a_stride,
        b_stride=arguments.b_stride,
    )
    if arguments.json:
        print(json.dumps(plan.json, indent=2))
    else:
        print(plan.text(None if arguments.rows else 4))
    return 1 if plan.error else 0
