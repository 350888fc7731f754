# SPDX-License-Identifier: Apache-2.0
"""`evergemm bench` on the GPU: every scheme, checked and timed beside torch, and wrong results refused."""

from __future__ import annotations

import csv

import pytest
import torch
from evergemm.cli import bench, gpu_bench, main


def test_bench_times_every_scheme(tmp_path, capsys):
    words = "bench --shapes 512x1024 --m 1,64 --rounds 2 --seconds 0.001"
    assert main([*words.split(), "--output", str(tmp_path)]) == 0
    assert "512 x 1024" in capsys.readouterr().out
    with (tmp_path / "bench.csv").open() as file:
        lines = list(csv.DictReader(file))
    ours = [(line["scheme"], line["m"]) for line in lines if line["implementation"] == "evergemm"]
    assert ours == [(scheme, m) for scheme in gpu_bench.SCHEMES for m in ("1", "64")]
    for line in lines:
        assert 0.5 < float(line["low_us"]) <= float(line["median_us"]) <= float(line["high_us"])
        assert float(line["host_us"]) > 0.5
        assert (line["row"] != "") == line["implementation"].startswith("evergemm")
    assert {line["implementation"] for line in lines} >= {"evergemm, overlapping", "torch._scaled_mm"}
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("scheme", list(gpu_bench.SCHEMES))
def test_a_wrong_result_is_refused(scheme):
    (shape,) = bench.shapes_named(["512x1024"])
    problem = gpu_bench.make_problem(shape, scheme, 64, gpu_bench.make_weights(shape, scheme))
    row = gpu_bench.plan_of(scheme, 64, shape.n, shape.k).json["row_index"]
    for name, call in gpu_bench.implementations(problem, row).items():
        result = call(0)
        gpu_bench.check(problem, name, result)
        if name.endswith("alone"):
            continue
        wrong = result.clone()
        wrong[:, 1:] = result[:, :-1]  # the neighbour's columns
        with pytest.raises(RuntimeError, match=f"bench: expected .*; got .* {scheme} m=64"):
            gpu_bench.check(problem, name, wrong)
    torch.cuda.synchronize()
