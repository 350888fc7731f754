# SPDX-License-Identifier: Apache-2.0
"""explain(): what would run for a problem, on an architecture that need not be here, and why nothing else.

Asks the library's planner through its C interface; nothing runs, no tensor is made, torch's operators are not called. The
module is not named after its function because a submodule `evergemm.explain` would take the function's place. Must not go
here: rules, reasons and rates (the library's tables have them).
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

from . import _library
from ._architecture import architecture_of_capability
from ._c_api import DTypeArgument, TensorArgument
from .text import bytes_text, microseconds_text

DTYPES = {"int8": "int8", "fp8": "float8_e4m3fn", "float8_e4m3fn": "float8_e4m3fn"}
OUT_DTYPES = ("bfloat16", "float16", "float32")
SCALES = ("tensorwise", "rowwise", "blockwise")
_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A plan and its reasons. `print(explanation)` shows it; `explanation.json` is the library's own answer.

    Attributes:
        architecture: "cpu", "sm90a", ...
        instruction_set: of the CPU, or "".
        built: whether this binary holds kernels for the architecture (a plan can be asked for either way).
        row: the kernel row that runs; tests, benchmarks, errors and profilers use the same name. "" where none does.
        rule: index of the rule that chose it, -1 where there was nothing to choose.
        why: the rule's reason.
        matches: what the rule matches, for example "m <= 4"; "everything" for the last.
        accumulation: "exact_int32", "fast" (fp8, one sum for all of k) or "promoted" (fp8, each 128 of k added to fp32).
        workspace_bytes: memory beside the result.
        split_k, swap_ab: how the row is used.
        possible: rows that could run it as well.
        rejected: (row, reason) of those that cannot.
        operations, bytes: what any kernel must do: 2 m n k; each operand read once, the result written once.
        roofline_microseconds: the least time for that on this device, or None where no rates are known.
        bound: "compute", "memory" or "unknown".
        rates: where the rates come from.
        error: why no row runs, or "".
    """

    architecture: str
    instruction_set: str
    built: bool
    row: str
    rule: int
    why: str
    matches: str
    accumulation: str
    workspace_bytes: int
    split_k: int
    swap_ab: bool
    possible: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]
    operations: float
    bytes: float
    roofline_microseconds: float | None
    bound: str
    rates: str
    error: str
    json: dict

    def __str__(self) -> str:
        return self.text(shown=4)

    def text(self, shown: int | None = None) -> str:
        """What print() shows, with at most `shown` rows named of each that could also run or are rejected alike."""
        asked = self.json
        device = self.architecture + (f" ({self.instruction_set})" if self.instruction_set else "")
        device += f", {asked['cores']} {'threads' if self.architecture == 'cpu' else 'multiprocessors'}"
        lines = [
            f"{asked['operator']}  m={asked['m']} n={asked['n']} k={asked['k']}  {asked['dtype']} -> {asked['out_dtype']}",
            f"  scales        {asked['scale_a']} x {asked['scale_b']}",
            f"  on            {device}" + ("" if self.built else "; no kernels for it in this build"),
        ]
        if self.error:
            return "\n".join([*lines, *_wrapped("  error         ", self.error)])
        lines.append(f"  row           {self.row}")
        if self.rule >= 0:
            lines += _wrapped("  rule          ", f"{self.rule}, matches {self.matches}: {self.why}")
            named = asked.get("rule_matches", {}).get("row", self.row)
            if named != self.row:
                reason = dict(self.rejected).get(named, "cannot run it")
                lines += _wrapped("                ", f"it names {named}: {reason}")
        elif self.why:
            lines.append(f"  why           {self.why}")
        lines.append(f"  accumulation  {self.accumulation}")
        if asked.get("arithmetic"):
            lines += _wrapped("  multiplies    ", asked["arithmetic"])
        how = [f"split k {self.split_k}"] if self.split_k > 1 else []
        how += ["a and b swapped"] if self.swap_ab else []
        if how:
            lines.append(f"  how           {', '.join(how)}")
        lines.append(f"  workspace     {bytes_text(self.workspace_bytes)}")
        work = f"{self.operations:.3g} operations, {bytes_text(self.bytes)}"
        if self.roofline_microseconds is not None:
            least = microseconds_text(self.roofline_microseconds)
            lines += _wrapped("  roofline      ", f"at least {least} ({self.bound} bound): {work}; {self.rates}")
        else:
            lines += _wrapped("  roofline      ", f"{work}; {self.rates}")
        if self.possible:
            lines += _wrapped("  also able     ", _some(self.possible, shown))
        title = "  rejected      "
        for reason, rows in self.rejected_by_reason().items():
            lines += _wrapped(title, f"{reason}:")
            lines += _wrapped(" " * (len(title) + 2), _some(rows, shown))
            title = " " * len(title)
        return "\n".join(lines)

    def rejected_by_reason(self) -> dict[str, list[str]]:
        """Reason -> the rows that it rejects, in the table's order."""
        reasons: dict[str, list[str]] = {}
        for row, reason in self.rejected:
            reasons.setdefault(reason, []).append(row)
        return reasons


def _some(rows: Sequence[str], shown: int | None) -> str:
    if shown is None or len(rows) <= shown:
        return ", ".join(rows)
    return f"{', '.join(rows[: shown - 1])} and {len(rows) - shown + 1} more"


def _wrapped(title: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=120,
        initial_indent=title,
        subsequent_indent=" " * len(title),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _matches(rule: dict | None) -> str:
    if rule is None:
        return ""
    parts = [f"{size} <= {rule[f'{size}_at_most']}" for size in "mnk" if rule[f"{size}_at_most"] is not None]
    return " and ".join(parts) or "everything"


def _from_json(answer: dict) -> Explanation:
    roofline = answer.get("roofline", {})
    return Explanation(
        architecture=answer["architecture"],
        instruction_set=answer.get("instruction_set", ""),
        built=answer["built"],
        row=answer.get("row", ""),
        rule=answer.get("rule", -1),
        why=answer.get("why", ""),
        matches=_matches(answer.get("rule_matches")),
        accumulation=answer.get("accumulation", ""),
        workspace_bytes=answer.get("workspace_bytes", 0),
        split_k=answer.get("split_k", 1),
        swap_ab=answer.get("swap_ab", False),
        possible=tuple(answer.get("possible", ())),
        rejected=tuple((one["row"], one["why"]) for one in answer.get("rejected", ())),
        operations=roofline.get("operations", 0.0),
        bytes=roofline.get("bytes", 0.0),
        roofline_microseconds=roofline.get("microseconds"),
        bound=roofline.get("bound", "unknown"),
        rates=roofline.get("source", ""),
        error=answer.get("error", ""),
        json=answer,
    )


class _Addresses:
    """Places for tensors that do not exist: aligned as torch aligns, none overlapping."""

    def __init__(self):
        self._next = 1 << 12

    def take(self, size: int) -> int:
        address = self._next
        self._next += -(-max(size, 1) // 256) * 256
        return address


def _refuse(expected: str, got: object, fix: str) -> ValueError:
    return ValueError(f"explain: expected {expected}; got {got!r}; fix: {fix}.")


def explain(
    operator: str = "scaled_mm",
    *,
    m: int,
    n: int,
    k: int,
    dtype: str = "int8",
    scales: str | tuple[str, str] = "rowwise",
    arch: str | None = None,
    bias: bool = False,
    out_dtype: str = "bfloat16",
    azp: bool = False,
    fast_accumulation: bool = True,
    deterministic: bool = False,
    a_stride: int | None = None,
    b_stride: int | None = None,
) -> Explanation:
    """The plan for a problem, without running it and without its device.

    Args:
        operator: "scaled_mm", or "scaled_mm_azp" (then int8 with a zero point per row if `azp`, else per tensor).
        m, n, k: rows of activations, output features, reduction; each at least 0.
        dtype: "int8" or "fp8" (float8_e4m3fn), of both operands.
        scales: "tensorwise", "rowwise" or "blockwise" (fp8: 1x128 x 128x128); a pair (of a, of b) mixes the first two.
        arch: "cpu" or None (this machine's processor), "cpu-avx2" and so on (another one), "sm90a", ...; `evergemm doctor`
            lists what this binary has kernels for.
        bias: whether one is added.
        out_dtype: "bfloat16", "float16" or "float32".
        azp: see operator.
        fast_accumulation, deterministic: as for evergemm.scaled_mm.
        a_stride, b_stride: elements from a row of a (a column of b) to the next; None: k, dense.

    Returns:
        Explanation.

    Raises:
        ValueError: a word that is none of those listed.
        RuntimeError: from the library, for a problem that the operator would refuse.
    """
    if operator not in ("scaled_mm", "scaled_mm_azp"):
        raise _refuse("operator scaled_mm or scaled_mm_azp", operator, "name one of the two")
    if dtype not in DTYPES:
        raise _refuse(f"dtype {', '.join(DTYPES)}", dtype, "name one of them")
    if out_dtype not in OUT_DTYPES:
        raise _refuse(f"out_dtype {', '.join(OUT_DTYPES)}", out_dtype, "name one of them")
    pair: Sequence[str] = (scales, scales) if isinstance(scales, str) else scales
    if len(pair) != 2 or any(mode not in SCALES for mode in pair):
        raise _refuse(f"scales {', '.join(SCALES)}, or a pair of them", scales, "name one of them")
    for name, size in (("m", m), ("n", n), ("k", k)):
        if size < 0:
            raise _refuse(f"{name} >= 0", size, "give the problem's real size")

    device = "cuda:0" if arch is not None and arch.startswith("sm") else "cpu"
    addresses = _Addresses()

    def tensor(sizes: Sequence[int], of: str, strides: Sequence[int] | None = None) -> TensorArgument:
        size = {"float32": 4, "int32": 4, "bfloat16": 2, "float16": 2}.get(of, 1)
        if strides is None:
            span = size
            for one in sizes:
                span *= max(one, 1)
        else:
            span = size * (1 + sum(max(one - 1, 0) * stride for one, stride in zip(sizes, strides, strict=True)))
        return TensorArgument(sizes, of, strides, device, addresses.take(span), span)

    a_step = max(k, 1) if a_stride is None else a_stride
    b_step = max(k, 1) if b_stride is None else b_stride
    stored = DTYPES[dtype]
    k_blocks, n_blocks = -(-k // _BLOCK), -(-n // _BLOCK)
    a_scale = {"tensorwise": (1,), "rowwise": (m, 1), "blockwise": (m, k_blocks)}[pair[0]]
    b_scale = {"tensorwise": (1,), "rowwise": (1, n), "blockwise": (k_blocks, n_blocks)}[pair[1]]
    values = [
        tensor((m, k), stored, (a_step, 1)),
        tensor((k, n), stored, (1, b_step)),
        tensor(a_scale, "float32"),
        tensor(b_scale, "float32"),
    ]
    bias_tensor = tensor((n,), out_dtype) if bias else None
    if operator == "scaled_mm_azp":
        values += [
            tensor((n,), "int32"),
            tensor((m, 1), "int32") if azp else None,
            bias_tensor,
            DTypeArgument(out_dtype),
        ]
    else:
        values += [bias_tensor, DTypeArgument(out_dtype), fast_accumulation, deterministic]
    return _from_json(_library.library.explain(operator, values, None if arch in (None, "cpu") else arch))


def architecture_of(device) -> str:
    """The architecture of a torch device: "cpu", or "sm90a", ... of a GPU that torch sees."""
    import torch

    device = torch.device(device)
    if device.type != "cuda":
        return "cpu"
    return architecture_of_capability(*torch.cuda.get_device_capability(device))
