# SPDX-License-Identifier: Apache-2.0
"""Writes the parts of the docs that are drawn from the code: docs/errors.md from the validator's tests, and the table of
what runs where in README.md from the planner's tables. `--check` writes nothing and fails where a file is out of date.

    python tools/generate_docs.py [--check]
"""

import argparse
import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RULE = re.compile(
    r'\{"(?P<rule>[^"]+)",\s*(?:"[a-z0-9_.]+",\s*)?\[\]\(\w+& \w+\) \{.*?\},\s*(?P<message>(?:"(?:[^"\\]|\\.)*"\s*)+)\},',
    re.DOTALL,
)

ERRORS_HEAD = """# Errors

Every error of an operator is a `RuntimeError` of one form:

```
operator: expected ...; got ...; fix: ...
```

The first words are the operator's name, arguments are called as in its signature, and every value is printed. Rules are
checked in signature order; the first that is violated is reported, and nothing has been written when it is. The same rules
in the same words apply to fake tensors (`torch.compile`, `torch.export`) and to C++ callers of `evergemm::validate`.

An error that says `CUDA` after validation is a fault of this library: it names the kernel, the problem and CUDA's own text,
and asks for a report.

Each rule below stands in `tests/cpp/validate*_test.cpp` with the call that breaks it; this page is generated from there by
`python tools/generate_docs.py`.
"""


def errors_page() -> str:
    sections = [
        ("Matrix products", "validate_test.cpp", "kGemmRules[] = {"),
        ("Quantizers", "validate_test.cpp", "kQuantizeRules[] = {"),
        ("Linear layers", "validate_test.cpp", "kLinearRules[] = {"),
        ("Mixture of experts", "validate_moe_test.cpp", "kMoeRules[] = {"),
    ]
    page = ERRORS_HEAD
    for title, file, start in sections:
        source = (ROOT / "tests/cpp" / file).read_text()
        begin = source.index(start)
        block = source[begin : source.index("\n};\n", begin)]
        rules = list(RULE.finditer(block))
        if not rules:
            raise SystemExit(f"generate_docs: expected rules after {start!r} in tests/cpp/{file}; got none")
        page += f"\n## {title}\n\n| rule | message |\n|---|---|\n"
        for found in rules:
            message = "".join(ast.literal_eval(part) for part in re.findall(r'"(?:[^"\\]|\\.)*"', found["message"]))
            page += f"| {found['rule']} | `{message}` |\n"
    return page


def last_gpu_results() -> pathlib.Path:
    return sorted((ROOT / "docs").glob("gpu_results_*.md"))[-1]


def support_table() -> str:
    """Which row each kind of problem gets on each architecture, asked of the planner itself."""
    from evergemm import explain

    problems = [
        ("int8", dict(dtype="int8", scales="rowwise")),
        ("fp8 tensor, row", dict(dtype="fp8", scales="rowwise")),
        ("fp8 128-blocks", dict(dtype="fp8", scales="blockwise")),
    ]
    proven = {
        "cpu": "tested on every commit",
        "sm90a": f"ran natively on an H100, both families: [last run](docs/{last_gpu_results().name})",
        "sm75": "same code ran on an H100 through JIT, as PTX of compute_75; machine code compiled only",
        "sm80": "same code ran on an H100 through JIT, as PTX of compute_80; machine code compiled only",
        "sm86": "as sm80, with the rows of sm89",
        "sm89": "same code ran on an H100 through JIT, as PTX of compute_89 (which makes fp8 products of fp16 ones there); "
        "machine code compiled only",
        "sm100": "same code ran on an H100 natively, compiled for it; compiled only for this one",
        "sm103": "as sm100",
        "sm110": "as sm100",
        "sm120": "as sm89",
        "sm121": "as sm89",
    }
    lines = [
        "| architecture | "
        + " | ".join(name for name, _ in problems)
        + " | fp8 operands are multiplied as | evidence |",
        "|---" * (len(problems) + 3) + "|",
    ]
    for architecture in [
        "cpu-avx512_vnni",
        "cpu-avx2",
        "cpu-portable",
        "sm75",
        "sm80",
        "sm86",
        "sm89",
        "sm90a",
        "sm100",
        "sm103",
        "sm110",
        "sm120",
        "sm121",
    ]:
        cells = []
        for _, problem in problems:
            plan = explain("scaled_mm", m=1024, n=4096, k=4096, arch=architecture, **problem)
            cells.append("none" if plan.error else f"`{plan.row}`")
        arithmetic = plan.json.get("arithmetic", "fp32")
        cells.append(next(word for word in ("fp16", "fp8", "fp32") if word in arithmetic))
        evidence = proven[architecture.split("-")[0]]
        lines.append(f"| {architecture} | " + " | ".join(cells) + f" | {evidence} |")
    return "\n".join(lines)


def replaced(text: str, marker: str, content: str) -> str:
    begin, end = f"<!-- generated: {marker} -->", f"<!-- end: {marker} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"generate_docs: expected the markers {begin} and {end} in README.md; got none")
    head, rest = text.split(begin)
    return head + begin + "\n" + content + "\n" + end + rest.split(end)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is out of date")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    wanted = {
        ROOT / "docs/errors.md": errors_page(),
        readme: replaced(readme.read_text(), "support table", support_table()),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is out of date; fix: python tools/generate_docs.py")
        else:
            path.write_text(wanted[path])
            print(f"wrote {path.relative_to(ROOT)}")
    if not stale:
        print(f"{len(wanted)} generated pages are up to date")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
