# SPDX-License-Identifier: Apache-2.0
"""The C++ programs of this folder: every GEMM row forced over every case, every quantizer bit for bit."""

from __future__ import annotations

import subprocess

import pytest


@pytest.mark.parametrize(
    "name", ["gemm_test", "grouped_test", "grouped_dense_test", "moe_test", "quantize_test", "refusal_test"]
)
def test_program(programs, tmp_path, name):
    junit = tmp_path / f"{name}.xml"
    done = subprocess.run([programs / name, f"--junit={junit}"], capture_output=True, text=True, timeout=300)
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert 'failures="0"' in junit.read_text()


def test_portable_family(programs, tmp_path):
    """As machine code and as PTX of three older architectures, side by side: the driver translates each on one core."""
    running = {}
    for variant in ["native", "ptx75", "ptx80", "ptx89"]:
        junit = tmp_path / f"{variant}.xml"
        command = [programs / "portable_test", f"--variant={variant}", f"--junit={junit}"]
        running[variant] = (
            junit,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True),
        )
    for variant, (junit, process) in running.items():
        text, _ = process.communicate(timeout=300)
        print(variant, text[-3000:])
        assert process.returncode == 0, text[-3000:]
        assert 'failures="0"' in junit.read_text()
