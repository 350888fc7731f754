# SPDX-License-Identifier: Apache-2.0
"""The command line in processes of its own: what it prints, writes and returns, also where torch is missing or broken."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import evergemm
import pytest
import torch
from evergemm.cli import COMMANDS, bench, gpu_bench, machine, main, moe_bench, moe_report, peers, timing


def run(*words: str, stub: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """`python -m evergemm WORDS`; `stub` stands before everything else on the path."""
    paths = [str(stub)] if stub else []
    paths += [str(folder) for folder in Path(evergemm.__file__).parents[1:2]]
    path = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-m", "evergemm", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", **environment},
    )


# ---- doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_on_a_machine_that_works():
    done = run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("evergemm is ready.\n")
    for words in (
        "python    " + sys.version.split()[0],
        "torch     " + torch.__version__,
        "library   " + evergemm.__version__,
        "why not a better one",
        "int8 per token",
        "fp8 blocks",
    ):
        assert words in done.stdout
    assert not done.stderr


# What scripts may rely on: key -> type, with the keys of what is inside.
SCHEMA = {
    "ready": bool,
    "problems": list,
    "notes": list,
    "python": {"version": str, "executable": str, "platform": str, "libc": str},
    "cpu": {"model": str, "machine": str, "threads": int, "features": list, "memory_bytes": int},
    "gpus": list,
    "driver": (str, type(None)),
    "no_gpu": str,
    "torch": {
        "ok": bool,
        "version": (str, type(None)),
        "cuda": (str, type(None)),
        "threads": (int, type(None)),
        "path": (str, type(None)),
        "error": str,
    },
    "library": {
        "ok": bool,
        "version": (str, type(None)),
        "path": (str, type(None)),
        "bytes": (int, type(None)),
        "operators": (int, type(None)),
        "instruction_set": (str, type(None)),
        "architectures": dict,
        "error": str,
    },
    "rows": list,
}


def check_schema(facts: dict, schema: dict, place: str = "") -> None:
    assert list(facts) == list(schema), place
    for key, wanted in schema.items():
        if isinstance(wanted, dict):
            check_schema(facts[key], wanted, f"{place}.{key}")
        else:
            assert isinstance(facts[key], wanted), f"{place}.{key} is {facts[key]!r}"


def test_doctor_json_has_its_schema_and_agrees_with_the_library():
    facts = json.loads(run("doctor", "--json").stdout)
    check_schema(facts, SCHEMA)
    assert facts["ready"] and not facts["problems"]
    assert facts["torch"]["version"] == torch.__version__
    assert facts["library"]["version"] == evergemm.__version__
    assert facts["library"]["architectures"]["cpu"]["built"]
    assert len(facts["rows"]) == 6
    for row in facts["rows"]:
        assert set(row) == {"place", "architecture", "scheme", "m", "n", "k", "row", "why", "error", "why_not_better"}
        dtype = "int8" if row["scheme"].startswith("int8") else "fp8"
        scales = "blockwise" if row["scheme"].endswith("blocks") else "rowwise"
        plan = evergemm.explain(m=row["m"], n=row["n"], k=row["k"], dtype=dtype, scales=scales)
        assert (row["row"], row["why"]) == (plan.row, plan.why)


def test_doctor_says_why_a_lesser_processor_gets_no_better_row():
    facts = json.loads(run("doctor", "--json", EVERGEMM_CPU="portable").stdout)
    assert facts["library"]["instruction_set"] == "portable"
    for row in facts["rows"]:
        assert any("this processor has portable" in one["reason"] and one["rows"] for one in row["why_not_better"])
    text = run("doctor", EVERGEMM_CPU="portable").stdout
    assert "CPU rows up to portable (EVERGEMM_CPU=portable limits it)" in text
    assert "this processor has portable" in text


BROKEN_TORCH = {
    "raises": ('raise ImportError("libcudart.so.99: cannot open")', "ImportError: libcudart.so.99: cannot open"),
    "is killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
    "exits": ("import os\nos._exit(7)", "exit code 7"),
    "is something else": ("x = 1", "has no attribute"),
}


def stub_torch(folder: Path, source: str) -> Path:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(source)
    return folder


@pytest.mark.parametrize("case", BROKEN_TORCH)
def test_doctor_survives_a_torch_that(case, tmp_path):
    source, words = BROKEN_TORCH[case]
    stub = stub_torch(tmp_path, source)
    done = run("doctor", stub=stub)
    assert done.returncode == 1
    assert "problem: torch does not import: " in done.stdout and words in done.stdout
    assert "evergemm is not ready" in done.stdout and "    fix: pip install" in done.stdout
    facts = json.loads(run("doctor", "--json", stub=stub).stdout)
    check_schema(facts, SCHEMA)
    assert not facts["ready"] and not facts["torch"]["ok"] and words in facts["torch"]["error"]
    assert facts["cpu"]["threads"] >= 1 and facts["library"]["path"]


HIDE_TORCH = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Hidden())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else found(name, package)
"""


def test_doctor_where_torch_is_not_installed(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE_TORCH)
    done = run("doctor", stub=tmp_path)
    assert done.returncode == 1
    assert "problem: torch is not installed\n    fix: pip install 'torch>=2.10'" in done.stdout
    other = run("explain", "--m", "1", "--n", "1", "--k", "1", stub=tmp_path)
    assert other.returncode == 1 and "No module named 'torch'" in other.stderr and "evergemm doctor" in other.stderr


def test_doctor_where_torch_is_too_old(tmp_path):
    source = (
        'import types\n__version__ = "2.9.1"\nversion = types.SimpleNamespace(cuda=None)\nget_num_threads = lambda: 1'
    )
    done = run("doctor", stub=stub_torch(tmp_path, source))
    assert done.returncode == 1
    assert "problem: torch 2.9.1 is older than 2.10" in done.stdout


def test_doctor_where_the_library_does_not_load(tmp_path):
    """The package's sources with a file that is no library."""
    package = tmp_path / "evergemm"
    package.mkdir()
    for path in Path(evergemm.__file__).parent.iterdir():
        if path.suffix != ".so" and path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    (package / "libevergemm_torch.so").write_bytes(b"not a library")
    done = run("doctor", stub=tmp_path)
    assert done.returncode == 1
    assert "problem: the library does not load: " in done.stdout and "Could not load this library" in done.stdout
    (package / "libevergemm_torch.so").unlink()
    done = run("doctor", stub=tmp_path)
    assert done.returncode == 1
    assert "no such file" in done.stdout and "    fix: install the package with pip" in done.stdout


NVML = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char* text, unsigned size) { strncpy(text, DRIVER, size); return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
  *handle = (void*)(0x7f0000000000ull + index);  /* wider than an int */
  return 0;
}
static unsigned index_of(void* handle) { return (unsigned)((unsigned long long)handle - 0x7f0000000000ull); }
int nvmlDeviceGetName(void* handle, char* text, unsigned size) {
  strncpy(text, index_of(handle) == 0 ? "NVIDIA H100 80GB HBM3" : "NVIDIA A100", size);
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void* handle, int* major, int* minor) {
  *major = index_of(handle) == 0 ? 9 : 8;
  *minor = 0;
  return 0;
}
int nvmlDeviceGetMemoryInfo(void* handle, unsigned long long* memory) { memory[0] = 80ull << 30; return 0; }
"""


def stub_nvml(folder: Path, driver: str) -> str:
    """A folder for LD_LIBRARY_PATH with an NVML that reports an H100 and an A100."""
    source = folder / "nvml.c"
    source.write_text(NVML)
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "g++", "clang"))))
    command = [compiler, "-shared", "-fPIC", "-xc", f'-DDRIVER="{driver}"', str(source)]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1")], check=True)
    return os.pathsep.join([str(folder), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep)


@pytest.mark.parametrize(("driver", "old"), [("580.65.06", False), ("570.124.06", True)])
def test_doctor_lists_gpus_without_a_context(tmp_path, driver, old):
    path = stub_nvml(tmp_path, driver)
    facts = json.loads(run("doctor", "--json", LD_LIBRARY_PATH=path).stdout)
    check_schema(facts, SCHEMA)
    built, built80 = (facts["library"]["architectures"][name]["built"] for name in ("sm90a", "sm80"))
    assert facts["driver"] == driver
    assert facts["gpus"] == [
        {
            "name": "NVIDIA H100 80GB HBM3",
            "capability": "9.0",
            "memory_bytes": 80 << 30,
            "architecture": "sm90a",
            "built": built,
        },
        {
            "name": "NVIDIA A100",
            "capability": "8.0",
            "memory_bytes": 80 << 30,
            "architecture": "sm80",
            "built": built80,
        },
    ]
    notes = {note["what"]: note["fix"] for note in facts["notes"]}
    assert (f"driver {driver} is older than 580: the GPU's kernels cannot run, the CPU's do" in notes) == old
    for name, has in (("sm80", built80), ("sm90a", built)):
        assert (f"no kernels for {name} in this library" in notes) == (not has)
        assert has or f"EVERGEMM_ARCHS={name} pip install" in notes[f"no kernels for {name} in this library"]
    assert facts["ready"]  # the CPU runs everything
    text = run("doctor", LD_LIBRARY_PATH=path).stdout
    assert (
        f"gpu       NVIDIA A100, 80 GiB, sm80 ({'kernels built' if built80 else 'no kernels in this library'})\n"
        f"                  driver {driver}" in text
    )


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("7.5", "sm75"),
        ("8.6", "sm86"),
        ("8.7", "sm86"),
        ("9.0", "sm90a"),
        ("10.1", "sm100"),
        ("12.1", "sm121"),
        ("12.5", "sm121"),
        ("13.0", "sm120"),
        ("7.0", "sm70"),
    ],
)
def test_gpus_that_came_later_have_an_architecture(capability, name):
    assert machine.architecture(capability) == name


# ---- explain -----------------------------------------------------------------------------------------------------------

ARCHITECTURES = ["cpu", "sm75", "sm80", "sm86", "sm89", "sm90a", "sm100", "sm103", "sm110", "sm120", "sm121"]
PROCESSORS = ["cpu-portable", "cpu-avx2", "cpu-avx512", "cpu-avx512_vnni"]


@pytest.mark.parametrize("arch", ARCHITECTURES + PROCESSORS)
@pytest.mark.parametrize(("dtype", "scales"), [("int8", "rowwise"), ("fp8", "rowwise"), ("fp8", "blockwise")])
def test_explain_answers_for_each_architecture(arch, dtype, scales, capsys):
    words = f"explain --m 17 --n 4096 --k 7168 --dtype {dtype} --scales {scales} --bias --arch {arch}".split()
    code = main(words)
    text = capsys.readouterr().out
    assert f"on            {arch.split('-')[0]}" in text
    plan = evergemm.explain(m=17, n=4096, k=7168, dtype=dtype, scales=scales, bias=True, arch=arch)
    assert plan.architecture == arch.split("-")[0]
    assert code == (1 if plan.error else 0)
    if plan.error:
        assert arch.startswith("sm") and f"got {arch}; fix: " in plan.error
    else:
        assert f"row           {plan.row}" in text
        assert plan.why in " ".join(text.split())
        assert plan.accumulation == ("exact_int32" if dtype == "int8" else plan.accumulation) != ""
        assert plan.operations == pytest.approx(2 * 17 * 4096 * 7168, rel=1e-5)
        blocks = 17 * 56 + 32 * 56 if scales == "blockwise" else 0
        assert plan.bytes == pytest.approx(4096 * 7168 + 17 * 7168 + 2 * 17 * 4096 + 4 * blocks, rel=1e-5)
    if arch in PROCESSORS:
        assert plan.instruction_set == arch.removeprefix("cpu-")
    assert main([*words, "--json"]) == code
    assert json.loads(capsys.readouterr().out) == plan.json


def test_explain_names_every_row_of_the_table_once():
    rows = json.loads(run("doctor", "--json").stdout)["library"]["architectures"]["cpu"]["rows"]
    plan = evergemm.explain(m=1, n=64, k=64)
    assert sorted([plan.row, *plan.possible, *(row for row, _ in plan.rejected)]) == sorted(rows)
    assert all(reason for _, reason in plan.rejected)
    assert all(row in plan.text(None) for row in rows)


def test_explain_on_the_command_line_defaults_to_this_processor():
    done = run("explain", "--m", "1", "--n", "4096", "--k", "4096")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout == str(evergemm.explain(m=1, n=4096, k=4096)) + "\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--dtype int4", "explain: expected dtype int8, fp8, float8_e4m3fn; got 'int4'; fix: "),
        (
            "--scales columnwise",
            "explain: expected scales tensorwise, rowwise, blockwise, or a pair of them; got 'columnwise'",
        ),
        ("--out-dtype float64", "explain: expected out_dtype bfloat16, float16, float32; got 'float64'"),
        ("--arch sm42", "explain: expected an architecture such as cpu, cpu-avx2 or sm90a; got sm42"),
        ("--scales blockwise", "scaled_mm: expected scale_a of "),  # int8 has no block scales
        ("--k 200000", "scaled_mm: expected k of at most 131071 for int8"),
        ("--m -1", "explain: expected m >= 0; got -1"),
        ("quantize", "explain: expected operator scaled_mm or scaled_mm_azp; got 'quantize'"),
    ],
)
def test_explain_refuses_in_one_line(words, text, capsys):
    given = {"--m": "2", "--n": "300", "--k": "300"}
    rest = words.split()
    if rest[0] in given:
        given[rest[0]] = rest[1]
        rest = []
    code = main(["explain", *rest, *(word for pair in given.items() for word in pair)])
    captured = capsys.readouterr()
    assert code == 1 and not captured.out
    assert captured.err.startswith(f"evergemm: {text}") and captured.err.count("\n") == 1


def test_explain_takes_mixed_scales_zero_points_and_strides():
    mixed = evergemm.explain(m=4, n=64, k=64, scales=("tensorwise", "rowwise"))
    assert (mixed.json["scale_a"], mixed.json["scale_b"]) == ("TensorWise", "RowWise")
    azp = evergemm.explain("scaled_mm_azp", m=4, n=64, k=64, azp=True, bias=True)
    assert azp.json["operator"] == "scaled_mm_azp" and azp.row
    aligned = evergemm.explain(m=64, n=4096, k=4096, dtype="fp8", arch="sm90a")
    odd = evergemm.explain(m=64, n=4096, k=4096, dtype="fp8", arch="sm90a", a_stride=4097)
    assert aligned.row != odd.row
    assert any("16" in reason for row, reason in odd.rejected if row == aligned.row)


# ---- bench -------------------------------------------------------------------------------------------------------------


def test_bench_writes_table_csv_and_picture(tmp_path):
    out = tmp_path / "out"
    words = f"bench --shapes 48x64,O1x --m 1,5 --rounds 2 --seconds 0.001 --output {out}".split()
    words[2] = "48x64"
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^48x64 +48 x 64 +int8 +1 ", done.stdout, re.M)
    assert "torch._int_mm + dequantize" in done.stdout and "fp32 mm" in done.stdout
    with (out / "bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if row["implementation"] == "evergemm"]
    assert {(row["scheme"], row["m"]) for row in ours} == {
        (scheme, m) for scheme in ("int8", "fp8", "fp8-block") for m in ("1", "5")
    }
    assert {row["implementation"] for row in rows} >= {"evergemm", "torch._int_mm + dequantize", "fp32 mm", "bf16 mm"}
    for row in rows:
        assert float(row["low_us"]) <= float(row["median_us"]) <= float(row["high_us"])
        rate = 2 * 48 * 64 * int(row["m"]) / (float(row["median_us"]) * 1e-6)
        assert float(row["operations_per_second"]) == pytest.approx(rate, rel=1e-3)
    for row in ours:
        scales = "blockwise" if row["scheme"] == "fp8-block" else "rowwise"
        plan = evergemm.explain(
            m=int(row["m"]), n=48, k=64, dtype=row["scheme"].split("-")[0], scales=scales, out_dtype="float32"
        )
        assert row["row"] == plan.row
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_bench_knows_the_shapes_of_the_list():
    shapes = bench.known_shapes()
    assert len(shapes) == 16 and (shapes["D1"].n, shapes["D1"].k) == (2112, 7168)
    for preset in bench.PRESETS.values():
        assert bench.shapes_named(preset)
    with pytest.raises(ValueError, match="expected shapes of L1, .*; got 'Z9'; fix: "):
        bench.shapes_named(["L1", "Z9"])


@pytest.mark.parametrize("scheme", peers.SCHEMES)
@pytest.mark.parametrize(("m", "n", "k"), [(3, 48, 64), (5, 200, 300)])
def test_bench_refuses_a_wrong_result(scheme, m, n, k):
    case = peers.make_case("x", scheme, m, n, k, torch.float32)
    with torch.no_grad():
        right = peers.implementations(case, [])[peers.OURS](0)
        peers.check(case, right)
        for spoil in (lambda x: x[-1, -1].mul_(1.001), lambda x: x[0].copy_(x[1]), lambda x: x[:, :8].zero_()):
            wrong = right.clone()
            spoil(wrong)
            with pytest.raises(RuntimeError, match=f"bench: expected .*; got .* {scheme} m={m} n={n} k={k}"):
                peers.check(case, wrong)


@pytest.mark.parametrize("scheme", peers.SCHEMES)
def test_peers_compute_the_same_product(scheme):
    case = peers.make_case("x", scheme, 4, 48, 64, torch.float32)
    if scheme != "fp8-block":  # peers with one scale a tensor use the mean: make all scales alike
        case.scale_a.fill_(0.25)
        case.scale_b.fill_(0.5)
    with torch.no_grad():
        calls = peers.implementations(case)
        ours = calls[peers.OURS](0)
        assert ("torch._int_mm + dequantize" in calls) == (scheme == "int8")
        for name, call in calls.items():
            if name.endswith(" mm"):  # unquantized, without scales
                product = case.a.float() @ case.weights[0].float().t()
                assert (call(1).float() - product).norm() <= 0.01 * product.norm(), name
            else:
                assert (call(1) - ours).norm() <= 1e-5 * ours.norm(), name


def test_timing_takes_turns_and_counts_calls():
    order = []
    calls = {"a": lambda index: order.append(("a", index)), "b": lambda index: order.append(("b", index))}
    times = timing.interleaved(calls, rounds=3, seconds=0.0)
    turns = [name for name, _ in order[-6:]]
    assert turns == ["a", "b"] * 3
    assert [index for _, index in order[-6:]] == [0, 0, 1, 1, 2, 2]
    for one in times.values():
        assert one.rounds == 3 and one.low <= one.median <= one.high


def test_cpu_report_goes_between_its_markers(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- cpu-report:begin -->\nold\n<!-- cpu-report:end -->\nafter\n")
    bench.write_between_markers(page, "new")
    assert page.read_text() == "before\n<!-- cpu-report:begin -->\nnew\n<!-- cpu-report:end -->\nafter\n"
    for text in ("nothing", "<!-- cpu-report:end --> <!-- cpu-report:begin -->", page.read_text() * 2):
        page.write_text(text)
        with pytest.raises(ValueError, match="expected the lines"):
            bench.write_between_markers(page, "new")
        assert page.read_text() == text


def test_cpu_report_measures_every_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_REPORT_SHAPES", ("48x64", "64x48"))
    monkeypatch.setattr(bench, "_REPORT_ROWS", (2, 5))
    monkeypatch.setattr(bench, "_REPORT_SINGLE", "96x64")
    monkeypatch.setattr(timing, "read_bandwidth", lambda: 1e10)
    page = tmp_path / "performance.md"
    page.write_text("head\n<!-- cpu-report:begin -->\n<!-- cpu-report:end -->\ntail\n")
    assert main(["bench", "--cpu-report", str(page), "--rounds", "2", "--seconds", "0.001"]) == 0
    text = page.read_text()
    assert text.startswith("head\n<!-- cpu-report:begin -->\nMeasured ") and text.endswith(
        "<!-- cpu-report:end -->\ntail\n"
    )
    assert capsys.readouterr().out.strip() in text
    assert "torch " + torch.__version__ in text and "Read bandwidth measured in the same run: 10.0 GB/s" in text
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    assert [line[0].strip("| ") for line in lines] == [
        *["n x k", "48 x 64", "48 x 64", "64 x 48", "64 x 48"],
        *["scheme", "int8", "fp8", "fp8-block"],
        *["n x k", "48 x 64", "48 x 64", "48 x 64", "48 x 64", "64 x 48", "64 x 48", "64 x 48", "64 x 48"],
    ]
    for line in lines:
        if line[0].strip("| ") not in ("n x k", "scheme"):
            assert re.search(r"`cpu_\w+`", line[-1])
    with pytest.raises(FileNotFoundError):
        bench.write_between_markers(tmp_path / "none.md", "")


def test_moe_report_is_made_of_measurements(tmp_path, monkeypatch, capsys):
    """Tables and picture without a GPU: every measurement is made up."""

    def layers(shapes, tokens, schemes, device, rounds, seconds, quiet=False):
        return [
            moe_bench.Measurement(shapes[0], scheme, number, name, (us, us, us), 15.0, 8.0)
            for scheme in schemes
            for number in tokens
            for name, us in (
                ("evergemm", 20.0),
                ("torch._scaled_grouped_mm", 50.0),
                ("torch._scaled_mm, a loop", 900.0),
            )
        ]

    def products(rounds, seconds):
        cells = [
            moe_report.Cell(name, scheme, tokens, routing, moe_report.Routed((3, 0, 5)), times, 40.0)
            for name in moe_report.SHAPES
            for scheme in ("fp8", "fp8-block")
            for tokens in (64, 256)
            for routing in moe_report.ROUTINGS
            for times in [{"evergemm": 50.0, "torch._scaled_grouped_mm": 60.0, "scaled_mm, a loop": 100.0}]
        ]
        return [one for one in cells if one.routing == "uniform"], cells

    monkeypatch.setattr(moe_bench, "measure", layers)
    monkeypatch.setattr(moe_report, "measure_products", products)
    monkeypatch.setattr(moe_report, "step_lines", lambda *_: [("`moe_route`", "1", "2", "3", "4", "5", "6")])
    monkeypatch.setattr(moe_report, "device_text", lambda: "a GPU that is not there")
    page = tmp_path / "performance.md"
    page.write_text("head\n<!-- moe-report:begin -->\n<!-- moe-report:end -->\ntail\n")
    assert main(["bench", "--moe-report", str(page), "--rounds", "2"]) == 0
    text = page.read_text()
    assert capsys.readouterr().out.strip() in text and "a GPU that is not there" in text
    assert "| fp8 | 1 | 8 | 20.0 | 15.0 | 0.75 | 50 (2.50) | 900 (45.00) | 18.5 |" in text
    assert "| int8 | 8 | 8 | 20.0 | 15.0 | 0.75 | 50 (2.50) | 900 (45.00) |  |" in text
    assert "| E1 | 64 | 8 | 2 | fp8 | 50.0 | 0.80 | 1.20 | 2.00 |" in text
    assert "| E3 | fp8-block | 256 | 50 (0.80) | 50 (0.80) | 50 (0.80) | 50 (0.80) |" in text
    assert "| `moe_route` | 1 | 2 | 3 | 4 | 5 | 6 |" in text
    assert (tmp_path / "performance_moe.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("routing", moe_report.ROUTINGS)
def test_routings_of_the_moe_report(routing):
    counts = moe_report.route(16, 16, 4, 400, routing).counts
    assert sum(counts) == 1600 and max(counts) <= 400
    even, odd = sum(counts[::2]), sum(counts[1::2])
    assert (odd == 0) == (routing == "half_of_experts_empty")
    if routing == "uniform":
        assert max(counts) < 140 and abs(even - odd) < 200
    if routing == "hot_expert_25_percent":
        assert counts[0] > 150 and max(counts[1:]) < 140
    if routing == "zipf_1.0":
        assert counts[0] > 2 * counts[8] > 0
    assert moe_report.route(16, 5, 4, 400, routing).counts == counts[:5]
    assert moe_report.route(16, 16, 16, 9, routing).counts == (9,) * 16  # a token's experts are distinct


def test_clocks_are_asked_in_turns():
    asked = []

    class Clock:
        def __init__(self, name):
            self.name = name

        def times_for(self, seconds):
            return {"a": 3, "b": 5}[self.name] if seconds == 0.5 else 0

        def microseconds(self, times):
            asked.append((self.name, times))
            return float(len(asked))

    samples = gpu_bench.in_turns({name: Clock(name) for name in ("a", "b")}, rounds=2, seconds=0.5)
    assert asked == [("a", 3), ("b", 5)] * 2
    assert samples == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def _made_up(shape, scheme, m, implementation, microseconds, host):
    rounds = (microseconds, microseconds * 1.1, microseconds * 0.9)
    row = "sm90_row" if implementation.startswith("evergemm") else ""
    return gpu_bench.Measurement(shape, scheme, m, implementation, row, rounds, host, 8.0)


def test_gpu_report_is_made_of_measurements(tmp_path, monkeypatch, capsys):
    """The tables and the picture, without a GPU: every measurement is made up."""

    def measure(shapes, rows, schemes, rounds, seconds, quiet=False):
        found = []
        for shape in shapes:
            for scheme in schemes:
                for m in rows:
                    found.append(_made_up(shape, scheme, m, "evergemm", 10.0, 0.0))
                    found.append(_made_up(shape, scheme, m, "evergemm, overlapping", 8.0, 7.5))
                    if scheme != "fp8-block":
                        found.append(_made_up(shape, scheme, m, "torch._scaled_mm", 20.0 if m > 1 else 5.0, 15.0))
                    if scheme == "int8":
                        found.append(_made_up(shape, scheme, m, "torch._int_mm alone", 4.0, 9.0))
        return found

    monkeypatch.setattr(gpu_bench, "measure", measure)
    monkeypatch.setattr(gpu_bench, "copy_bandwidth", lambda: 2.9e12)
    monkeypatch.setattr(gpu_bench, "quantizer_lines", lambda *_: [("quantize", "35.0", "0.97", "2.10")])
    monkeypatch.setattr(gpu_bench, "chain_lines", lambda *_: [("fp8", 16, "0.500", "0.600", "1.20", "1.10")])
    monkeypatch.setattr(gpu_bench, "order_lines", lambda *_: [("64 x 96", "fp8", 1, "4", "6", "1.50", "`a`", "`b`")])
    monkeypatch.setattr(gpu_bench, "device_text", lambda: "a GPU that is not there")
    page = tmp_path / "performance.md"
    page.write_text("head\n<!-- gpu-report:begin -->\n<!-- gpu-report:end -->\ntail\n")
    assert main(["bench", "--gpu-report", str(page), "--rounds", "2"]) == 0
    text = page.read_text()
    assert capsys.readouterr().out.strip() in text and "a GPU that is not there" in text
    assert text.startswith("head\n") and text.endswith("<!-- gpu-report:end -->\ntail\n")
    assert "| int8 | 16 | 0.800 | 1.000 | 0.400 | 2.00 | 2.00 | 0.40 |" in text
    assert "| fp8 | 1 | 0.800 | 1.000 | 1.600 | 0.50 | 0.50 |  |" in text
    assert "| fp8-block | 64 | 0.800 | 1.000 |  |  |  |  |" in text
    assert "| fp8-tensor | 7.5 | 7.5 | 7.5 | 15.0 | 15.0 | 15.0 |" in text
    assert "| quantize | 35.0 | 0.97 | 2.10 |" in text
    assert "| fp8 | 16 | 0.500 | 0.600 | 1.20 | 1.10 |" in text
    assert "| 64 x 96 | fp8 | 1 | 4 | 6 | 1.50 | `a` | `b` |" in text
    assert (tmp_path / "performance_gpu.png").read_bytes().startswith(b"\x89PNG\r\n")
    shown = gpu_bench.results_table(measure(bench.shapes_named(["L1"]), (1, 16), ["int8", "fp8"], 1, 0.0))
    assert shown.count("2.00x") == 2 and shown.count("sm90_row") == 4
    gpu_bench.write_csv(tmp_path / "bench.csv", measure(bench.shapes_named(["L1"]), (1,), ["int8"], 1, 0.0))
    with (tmp_path / "bench.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["median_us"] for line in lines] == ["10.000", "8.000", "5.000", "4.000"]
    assert lines[0]["row"] == "sm90_row" and lines[3]["row"] == ""


# ---- the parser --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_says_what_a_command_does(command):
    done = run(*([command] if command else []), "--help")
    assert done.returncode == 0
    for name, line in COMMANDS.items():
        if command in (None, name):
            assert " ".join(line.split())[1:] in " ".join(done.stdout.split())


def test_help_and_doctor_import_no_torch(tmp_path):
    stub = stub_torch(tmp_path, "raise SystemExit('torch was imported')")
    assert run("--help", stub=stub).returncode == 0
    assert "torch does not import: torch was imported" in run("doctor", stub=stub).stdout


def test_the_console_script_starts_without_torch_too(tmp_path):
    """What pip writes into bin/evergemm."""
    script = tmp_path / "bin" / "evergemm"
    script.parent.mkdir()
    script.write_text("import sys\nfrom evergemm.cli import main\nsys.exit(main())\n")
    path = os.pathsep.join([str(stub_torch(tmp_path, "1 / 0")), str(Path(evergemm.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, script, "doctor"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 1 and not done.stderr
    assert "torch does not import: ZeroDivisionError" in done.stdout


def test_importing_the_package_elsewhere_loads_it_at_once():
    code = "import torch, evergemm; print('__version__' in vars(evergemm), torch.ops.evergemm.scaled_mm)"
    path = os.pathsep.join([str(Path(evergemm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout == "True evergemm.scaled_mm\n", done.stderr


def test_wrong_words_are_exit_code_2():
    for words in (["dance"], [], ["bench", "--m", "0"], ["explain", "--m", "1"]):
        assert run(*words).returncode == 2


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m evergemm explain --rows --m 1 --n 64 --k 64 --arch sm90a --dtype int8 | head -n 1"
    path = os.pathsep.join([str(Path(evergemm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith("scaled_mm ")
