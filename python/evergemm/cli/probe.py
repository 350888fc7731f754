# SPDX-License-Identifier: Apache-2.0
"""What doctor asks torch and the library, in a process of its own: an import that raises, hangs or kills the process is a
finding there, not the end of doctor. Each finished step is one line of JSON on stdout.

Run by doctor.py as `python -c <this text>`, so that a broken package does not keep it from starting. Must not go here:
judgement and wording (doctor.py).
"""

import json
import sys

SCHEMES = (
    # name, dtype, scales
    ("int8 per token", "int8", "rowwise"),
    ("fp8 per token", "fp8", "rowwise"),
    ("fp8 blocks", "fp8", "blockwise"),
)
ROWS = (1, 128)  # m of the problems that doctor asks about; n and k:
SIZE = 4096


def say(step, **facts):
    sys.stdout.write(json.dumps({"step": step, **facts}) + "\n")
    sys.stdout.flush()


def main():
    import torch

    say(
        "torch",
        version=torch.__version__,
        cuda=torch.version.cuda,
        threads=torch.get_num_threads(),
        file=getattr(torch, "__file__", None),
    )

    import evergemm
    from evergemm import _library

    say("library", path=str(_library.find()), operators=len(_library.library.schemas()), **_library.library.facts())

    # A small product with a known answer: the kernels of this machine really run.
    a = torch.arange(-8, 8, dtype=torch.int8).repeat(4, 2)
    one = torch.ones(1)
    with torch.no_grad():
        got = evergemm.scaled_mm(a, a.t(), one, one, None, torch.float32)
        wanted = a.to(torch.float32) @ a.to(torch.float32).t()
        eight = a.to(torch.float32).to(torch.float8_e4m3fn)
        also = evergemm.scaled_mm(eight, eight.t(), one, one, None, torch.float32)
    say("product", right=bool(torch.equal(got, wanted)) and bool(torch.equal(also, wanted)))

    from evergemm.explanation import architecture_of, explain

    places = [("cpu", "cpu")]
    if torch.cuda.is_available():
        places += [(f"cuda:{i}", architecture_of(f"cuda:{i}")) for i in range(torch.cuda.device_count())]
    for place, arch in places:
        for scheme, dtype, scales in SCHEMES:
            for m in ROWS:
                try:
                    plan = explain(m=m, n=SIZE, k=SIZE, dtype=dtype, scales=scales, arch=arch)
                    rejected = [list(pair) for pair in plan.rejected]
                    facts = dict(row=plan.row, why=plan.why, rejected=rejected, error=plan.error)
                except RuntimeError as error:
                    facts = dict(row="", why="", rejected=[], error=str(error))
                say("row", place=place, architecture=arch, scheme=scheme, m=m, n=SIZE, k=SIZE, **facts)


main()
