# SPDX-License-Identifier: Apache-2.0
"""Which row each shape gets, on each architecture, as a committed list: a change of a rule shows here which shapes it moves.

python tests/python/test_golden_plans.py     writes the list anew; read its diff before committing it
"""

import json
import pathlib

import evergemm

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden_plans.tsv"
SHAPES = json.loads((pathlib.Path(evergemm.__file__).parent / "data" / "shapes.json").read_text())
KINDS = {
    "int8": {"dtype": "int8", "scales": "rowwise"},
    "fp8": {"dtype": "fp8", "scales": "rowwise"},
    "fp8_blocks": {"dtype": "fp8", "scales": "blockwise"},
}
ARCHITECTURES = ("cpu-portable", "cpu-avx2", "cpu-avx512", "cpu-avx512_vnni", "sm75", "sm80", "sm86", "sm89", "sm90a")
ARCHITECTURES += ("sm100", "sm103", "sm110", "sm120", "sm121")
BETWEEN = (300, 384, 640)  # tokens between the powers of two, where tiles of other sizes win
HEAD = "# SPDX-License-Identifier: Apache-2.0\narchitecture\tkind\tshape\tn\tk\tplans (from m on: row)\n"


def plans(architecture: str, kind: str, shape: dict) -> str:
    """'1 rowA; 8 rowB': the row for each m of shapes.json and BETWEEN, named where it changes."""
    steps, last = [], None
    for m in sorted({*SHAPES["m"], *BETWEEN}):
        plan = evergemm.explain("scaled_mm", m=m, n=shape["n"], k=shape["k"], arch=architecture, **KINDS[kind])
        row = plan.error or plan.row
        if row != last:
            steps.append(f"{m} {row}")
            last = row
    return "; ".join(steps)


def table() -> str:
    lines = [
        f"{architecture}\t{kind}\t{shape['id']}\t{shape['n']}\t{shape['k']}\t{plans(architecture, kind, shape)}\n"
        for architecture in ARCHITECTURES
        for kind in KINDS
        for shape in SHAPES["dense"]
    ]
    return HEAD + "".join(lines)


def test_plans_are_those_of_the_golden_list():
    now, golden = table().splitlines(), GOLDEN.read_text().splitlines()
    assert len(now) == HEAD.count("\n") + len(ARCHITECTURES) * len(KINDS) * len(SHAPES["dense"])
    moved = [f"- {old}\n+ {new}" for old, new in zip(golden, now, strict=False) if old != new]
    assert not moved and len(now) == len(golden), (
        "plans moved; if that is meant, run python tests/python/test_golden_plans.py and commit the list:\n"
        + "\n".join(moved)
    )


if __name__ == "__main__":
    GOLDEN.write_text(table())
    print(f"wrote {GOLDEN.name}")
