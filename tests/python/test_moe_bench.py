# SPDX-License-Identifier: Apache-2.0
"""`evergemm bench --moe` on the CPU: every implementation is checked, timed, shown and written; wrong layers are refused."""

from __future__ import annotations

import csv

import pytest
from evergemm.cli import main, moe_bench


def test_bench_writes_table_csv_and_picture(tmp_path, capsys):
    words = "bench --moe --device cpu --shapes 4x2x64x32 --m 1,5 --rounds 2 --seconds 0.001"
    assert main([*words.split(), "--output", str(tmp_path)]) == 0
    assert "4x2x64x32" in capsys.readouterr().out
    with (tmp_path / "moe.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(one["scheme"], one["tokens"]) for one in lines if one["implementation"] == moe_bench.OURS] == [
        (scheme, tokens) for scheme in moe_bench.SCHEMES for tokens in ("1", "5")
    ]
    assert {one["implementation"] for one in lines} == {
        "evergemm",
        "evergemm.scaled_mm, a loop",
        "torch bfloat16, a loop",
    }
    for one in lines:
        assert 0 < float(one["fastest"]) <= float(one["microseconds"]) <= float(one["slowest"])
        assert 2 <= float(one["experts_used"]) <= 4
    assert (tmp_path / "moe.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("scheme", moe_bench.SCHEMES)
def test_a_wrong_layer_is_refused(scheme):
    (shape,) = moe_bench.shapes_named(["4x2x128x96"])
    problem = moe_bench.make_problem(moe_bench.Layer(shape, scheme, "cpu"), 7)
    for name, call in moe_bench.implementations(problem).items():
        result = call(0)
        moe_bench.check(problem, name, result)
        for wrong in (
            call(1),
            result.roll(1, 0),
            result * 1.2,
        ):  # another routing, the neighbour's tokens, a wrong scale
            with pytest.raises(RuntimeError, match=f"bench: expected .*; got .*{scheme}, 7 tokens"):
                moe_bench.check(problem, name, wrong)


def test_wrong_names_are_refused(capsys):
    for shape in moe_bench.shapes_named(["F1", "E1"]):
        assert shape.weights == 3 * shape.hidden * shape.intermediate
    with pytest.raises(ValueError, match="bench: expected shapes of E1, .*; got 'E99'; fix: "):
        moe_bench.shapes_named(["E99"])
    assert main("bench --moe --device cpu --schemes fp4".split()) == 1
    assert "bench: expected schemes of fp8, fp8-block, int8; got ['fp4']; fix: " in capsys.readouterr().err
