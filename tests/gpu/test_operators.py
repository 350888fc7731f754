# SPDX-License-Identifier: Apache-2.0
"""The GPU through torch: the same bits as on the CPU wherever arithmetic is exact, the current stream, graphs, threads,
errors, and kernels that are called what explain() calls them. The bound of fp8 is proven in gemm_test.cpp."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import threading

import evergemm
import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))
from on_gpu import MOE, same_bits, to_gpu
from operator_calls import CALLS

FP8 = torch.float8_e4m3fn
CASES = json.loads((pathlib.Path(__file__).parents[1] / "cases.json").read_text())["gemm"]


def int8_matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(-128, 128, (rows, columns), dtype=torch.int8)


def exact_fp8(rows: int, columns: int) -> torch.Tensor:
    """From {-1, 0, 1, 2}: every partial sum fits the tensor core's accumulator, so every bit is known."""
    return torch.randint(-1, 3, (rows, columns)).float().to(FP8)


def powers_of_two(*shape: int) -> torch.Tensor:
    return torch.exp2(torch.randint(-2, 3, shape).float())


@pytest.mark.parametrize("call", [call for call in CALLS if not call.name.startswith(MOE)], ids=lambda call: call.name)
def test_every_operator_has_the_cpus_bits(call):
    arguments = call.make()
    if call.name.startswith("scaled_mm") or "scaled_mm" in call.name:
        for name in ("a", "b"):
            if arguments[name].dtype == FP8:  # exact on both
                rows, columns = arguments[name].shape
                made = exact_fp8(rows, columns) if name == "a" else exact_fp8(columns, rows).t()
                arguments[name] = made
        for name in arguments:
            if "scale" in name and arguments["a"].dtype == FP8:
                arguments[name] = powers_of_two(*arguments[name].shape)
    on_gpu = {name: to_gpu(value) for name, value in arguments.items()}
    expected, got = call.run(arguments), call.run(on_gpu)
    pairs = []
    if expected is not None:
        pairs = list(zip(expected, got, strict=True)) if isinstance(expected, (tuple, list)) else [(expected, got)]
    pairs += [(arguments[name], on_gpu[name]) for name in call.written]
    assert pairs
    for x, y in pairs:
        assert y.is_cuda and same_bits(x, y)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_int8_has_the_cpus_bits(case, out_dtype):
    m, n, k = case["m"], case["n"], case["k"]
    if m * n * k > 1 << 31:
        m = max(1, (1 << 31) // max(1, n * k))  # the CPU's share of the time
    a, b = int8_matrix(m, k), int8_matrix(n, k).t()
    scale_a, scale_b = torch.rand(m, 1) * 0.1, torch.rand(n) * 0.1
    bias = torch.randn(n).to(out_dtype)
    expected = evergemm.scaled_mm(a, b, scale_a, scale_b, bias, out_dtype)
    got = evergemm.scaled_mm(a.cuda(), to_gpu(b), scale_a.cuda(), scale_b.cuda(), bias.cuda(), out_dtype)
    assert same_bits(expected, got)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
@pytest.mark.parametrize("scales", ["rowwise", "blockwise"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "promoted"])
def test_exact_fp8_has_the_cpus_bits(case, scales, fast):
    m, n, k = case["m"], case["n"], case["k"]
    if m * n * k > 1 << 29:
        m = max(1, (1 << 29) // max(1, n * k))
    a, b = exact_fp8(m, k), exact_fp8(n, k).t()
    blocks = -(-k // 128)
    if scales == "blockwise":
        scale_a, scale_b = powers_of_two(m, blocks), powers_of_two(blocks, -(-n // 128))
    else:
        scale_a, scale_b = powers_of_two(m, 1), powers_of_two(n)
    expected = evergemm.scaled_mm(a, b, scale_a, scale_b, fast_accumulation=fast)
    got = evergemm.scaled_mm(a.cuda(), to_gpu(b), scale_a.cuda(), scale_b.cuda(), fast_accumulation=fast)
    assert same_bits(expected, got)


def test_a_row_does_not_depend_on_its_neighbours():
    b = torch.randn(1536, 2048, device="cuda").to(FP8).t()
    a = torch.randn(3000, 2048, device="cuda").to(FP8)
    scale_a, scale_b = torch.rand(3000, 1, device="cuda"), torch.rand(1536, device="cuda")
    whole = evergemm.scaled_mm(a, b, scale_a, scale_b, deterministic=True)
    for m in (1, 3, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 1000, 2999):
        part = evergemm.scaled_mm(a[:m], b, scale_a[:m], scale_b, deterministic=True)
        assert same_bits(part, whole[:m]), m


def test_the_current_stream_is_used():
    a, b = int8_matrix(512, 4096).cuda(), to_gpu(int8_matrix(4096, 4096).t())
    one = torch.ones((), device="cuda")
    expected = evergemm.scaled_mm(a, b, one, one)
    side = torch.cuda.Stream()
    for _ in range(50):
        fresh = torch.zeros_like(a)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000)
            fresh.copy_(a)
            got = evergemm.scaled_mm(fresh, b, one, one)
        side.synchronize()
        assert torch.equal(got, expected)


@pytest.mark.parametrize("m", [1, 24, 100, 300])
def test_graph_of_a_layer_replays_with_new_data(m):
    """A producer and a consumer whose launches overlap: quantizer, product, quantizer, product, 10^4 replays."""
    weight_1 = to_gpu(int8_matrix(1536, 512).t())
    weight_2 = to_gpu(int8_matrix(512, 1536).t())
    scale = torch.rand(1536, device="cuda") * 1e-3
    x = torch.randn(m, 512, device="cuda", dtype=torch.bfloat16)

    def layer(x):
        q, s = torch.ops.evergemm.quantize_per_token(x, torch.int8, None)
        h = evergemm.scaled_mm(q, weight_1, s, scale)
        q, s = torch.ops.evergemm.quantize_per_token(h, torch.int8, None)
        return evergemm.scaled_mm(q, weight_2, s, scale[:512])

    layer(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    for _ in range(10):
        x.normal_()
        expected = layer(x)
        for _ in range(1000):
            graph.replay()
        assert same_bits(y, expected)


def test_memory_that_is_used_again_in_another_layout():
    """What is kept of a tensor between calls is keyed by all that it was made from: addresses come back as other matrices."""
    memory = [torch.empty(1 << 20, dtype=torch.uint8, device="cuda") for _ in range(3)]
    problems = [(16, 256, 512), (64, 512, 256), (300, 256, 512), (300, 512, 512), (1, 256, 512)]
    one = torch.ones((), device="cuda")
    for _ in range(3):
        for m, n, k in problems:
            for gap in (0, 16):
                for dtype, out_dtype in (
                    (torch.int8, torch.bfloat16),
                    (FP8, torch.float16),
                    (torch.int8, torch.float32),
                ):
                    a, b = exact_fp8(m, k), exact_fp8(n, k)
                    a, b = (x.float().to(dtype) for x in (a, b))
                    views = []
                    for place, x in zip(memory, (a, b), strict=False):
                        view = place.view(dtype).as_strided(x.shape, (k + gap, 1))
                        views.append(view.copy_(x))
                    out = memory[2].view(out_dtype).as_strided((m, n), (n + gap, 1))
                    evergemm.scaled_mm(views[0], views[1].t(), one, one, out=out)
                    assert same_bits(out, (a.float() @ b.float().t()).to(out_dtype)), (m, n, k, gap, dtype)


def test_a_fresh_thread_and_a_visit_after_an_error():
    a, b = int8_matrix(64, 256).cuda(), to_gpu(int8_matrix(128, 256).t())
    one = torch.ones((), device="cuda")
    expected = evergemm.scaled_mm(a, b, one, one)
    results = []
    thread = threading.Thread(target=lambda: results.append(evergemm.scaled_mm(a, b, one, one)))
    thread.start()
    thread.join()
    assert torch.equal(results[0], expected)
    with pytest.raises(RuntimeError, match="scaled_mm"):
        evergemm.scaled_mm(a, b, one.cpu(), one)
    with pytest.raises(RuntimeError, match="scaled_mm"):
        evergemm.scaled_mm(a, b[:100], one, one)
    assert torch.equal(evergemm.scaled_mm(a, b, one, one), expected)


def test_a_forked_child_without_a_context_works():
    code = (
        "import os, sys, evergemm, torch\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    a = torch.ones(16, 64, dtype=torch.int8, device='cuda'); one = torch.ones((), device='cuda')\n"
        "    y = evergemm.scaled_mm(a, a.t(), one, one)\n"
        "    os._exit(0 if bool((y == 64).all()) else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_importing_creates_no_context():
    code = "import evergemm, torch; raise SystemExit(1 if torch.cuda.is_initialized() else 0)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_more_than_2_to_the_31_elements():
    m, n, k = 66_000, 33_000, 32
    a, b = int8_matrix(m, k).cuda(), to_gpu(int8_matrix(n, k).t())
    scale_a, scale_b = torch.rand(m, 1, device="cuda"), torch.rand(n, device="cuda")
    got = evergemm.scaled_mm(a, b, scale_a, scale_b)
    assert got.numel() > 2**31
    rows = torch.randint(0, m, (64,))
    rows[0], rows[1] = 0, m - 1
    expected = evergemm.scaled_mm(a[rows.cuda()].cpu(), b.cpu(), scale_a[rows.cuda()].cpu(), scale_b.cpu())
    assert same_bits(expected, got[rows.cuda()])


@pytest.mark.parametrize("dtype, scales", [("int8", "rowwise"), ("fp8", "rowwise"), ("fp8", "blockwise")])
def test_explain_names_the_kernel_that_a_profiler_sees(dtype, scales):
    shapes = [
        (m, n, k)
        for m in (1, 17, 64, 100, 200, 512, 2048)
        for n, k in ((2112, 7168), (4096, 512), (6144, 4096), (5760, 2880), (130, 100))
    ]
    for m, n, k in shapes:
        explained = evergemm.explain("scaled_mm", m=m, n=n, k=k, dtype=dtype, scales=scales, arch="sm90a")
        make = int8_matrix if dtype == "int8" else exact_fp8
        a, b = make(m, k).cuda(), to_gpu(make(n, k).t())
        blocks = -(-k // 128)
        if scales == "blockwise":
            scale_a, scale_b = torch.ones(m, blocks, device="cuda"), torch.ones(blocks, -(-n // 128), device="cuda")
        else:
            scale_a, scale_b = torch.ones(m, 1, device="cuda"), torch.ones(n, device="cuda")
        evergemm.scaled_mm(a, b, scale_a, scale_b)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            evergemm.scaled_mm(a, b, scale_a, scale_b)
            torch.cuda.synchronize()
        kernels = [event.name for event in profile.events() if event.name.startswith(("sm90_", "portable_"))]
        assert kernels == [explained.row], (m, n, k)
