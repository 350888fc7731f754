# SPDX-License-Identifier: Apache-2.0
"""Writes wgmma.cuh: one wrapper per (element type, n) around wgmma.mma_async, both operands in shared memory, 32 bytes of k.

The number of accumulator registers stands in the text of the instruction, which no template can spell; the build runs this.
Usage: generate_wgmma.py OUTPUT
"""

import sys

WIDTHS = (16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256)
#        bool  accumulator  PTX types         constraint  scale-a and scale-b immediates (floating point only)
KINDS = (
    ("true", "float", "f32.e4m3.e4m3", "f", ", 1, 1"),
    ("false", "std::int32_t", "s32.s8.s8", "r", ""),
)


def wrapper(is_float: str, accumulator: str, types: str, constraint: str, scales: str, width: int) -> str:
    count = width // 2
    registers = ",".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"+{constraint}"(d[{i}])' for i in range(count))
    instruction = (
        f"wgmma.mma_async.sync.aligned.m64n{width}k32.{types} {{{registers}}}, %{count}, %{count + 1}, p{scales};"
    )
    return (
        f"template <>\nstruct Wgmma<{is_float}, {width}> {{\n"
        f"  static __device__ __forceinline__ void multiply({accumulator} (&d)[{count}], std::uint64_t a, std::uint64_t b,\n"
        f"                                                  int accumulate) {{\n"
        f'    asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{count + 2}, 0; {instruction} }}"\n'
        f'                 : {outputs}\n                 : "l"(a), "l"(b), "r"(accumulate));\n  }}\n}};\n'
    )


def main() -> None:
    parts = [
        "// SPDX-License-Identifier: Apache-2.0\n// Made by generate_wgmma.py.\n#pragma once\n#include <cstdint>\n\n"
        "namespace evergemm::sm90 {\n\n"
        "// d (+)= a * b for one m64 slab; a and b are shared-memory descriptors, accumulate 0 starts a new sum.\n"
        "template <bool kFloat, int kColumns>\nstruct Wgmma;\n"
    ]
    parts += [wrapper(*kind, width) for kind in KINDS for width in WIDTHS]
    parts.append("\n}  // namespace evergemm::sm90\n")
    with open(sys.argv[1], "w", encoding="utf-8") as output:
        output.write("".join(parts))


if __name__ == "__main__":
    main()
