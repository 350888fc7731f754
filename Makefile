# SPDX-License-Identifier: Apache-2.0
# The commands of this project. Newcomers need two: `make demo` and `make test`. Each creates and uses .venv in this folder;
# each line is a command that one could type. Must not go here: logic (tools/ has it).

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export CXX := $(shell sh tools/check_machine.sh --compiler)
export CC := $(subst g++,gcc,$(CXX))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What builds the package inside .venv; a later torch of the floor or newer that is already there is kept.
BUILD_REQUIREMENTS := 'torch>=2.10' 'scikit-build-core>=0.11' 'cmake>=3.26' 'ninja>=1.10'

.PHONY: help demo test bench gpu-test gpu-sanitize abi-matrix fuzz sanitize lint gates wheel full-wheel release-wheel clean
help:
	@echo 'make demo           quantize a real model to int8 and fp8 and measure it'
	@echo 'make test           every C++ and Python test'
	@echo 'make bench          time the operators against torch'
	@echo 'make gpu-test       the tests that need an H100'
	@echo 'make gpu-sanitize   the GPU test programs under the four tools of compute-sanitizer'
	@echo 'make abi-matrix     one wheel on every torch from 2.10 on; writes docs/compatibility.md'
	@echo 'make sanitize       the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make fuzz           libFuzzer on validator and planner (SECONDS_EACH=60)'
	@echo 'make lint gates     formatting; what the sources may not contain'
	@echo 'make wheel          dist/evergemm-*.whl, judged by tools/check_wheel.py'
	@echo 'make full-wheel     the same with every GPU architecture: its time and size, judged (nvcc, no GPU)'
	@echo 'make release-wheel  the wheel for glibc 2.28, with a manylinux tag'

demo: .venv/.build-requirements
	pip install --quiet --no-build-isolation '.[demo]'
	python -m evergemm demo

test: .venv/.build-requirements
	sh tools/check_machine.sh --tests
	pip install --quiet --no-build-isolation '.[demo,test]'
	cmake --preset host
	cmake --build --preset host
	python tools/run_tests.py

bench: .venv/.build-requirements
	pip install --quiet --no-build-isolation '.[demo]'
	python -m evergemm bench

gpu-test: .venv/.build-requirements
	EVERGEMM_ARCHS=native pip install --quiet --no-build-isolation '.[test]'
	cmake --preset gpu
	cmake --build --preset gpu
	python -m pytest tests/gpu --junitxml=build/gpu-test.xml

gpu-sanitize: .venv/.build-requirements
	cmake --preset gpu
	cmake --build --preset gpu
	python tools/run_sanitizers.py

abi-matrix: wheel
	python tools/abi_matrix.py dist/evergemm-*.whl --write docs/compatibility.md

sanitize: .venv/.build-requirements
	cmake --preset sanitize
	cmake --build --preset sanitize
	python tools/run_tests.py --preset sanitize --only cpp

SECONDS_EACH ?= 60
fuzz: .venv/.build-requirements
	CC=clang CXX=clang++ cmake --preset fuzz
	cmake --build --preset fuzz
	python tools/run_fuzzers.py --seconds $(SECONDS_EACH)

lint: .venv/.build-requirements
	pip install --quiet --group lint
	python tools/lint.py

gates:
	python3 tools/check_sources.py

wheel: .venv/.build-requirements
	pip install --quiet --group gates
	rm -rf dist
	EVERGEMM_ARCHS=$${EVERGEMM_ARCHS:-none} pip wheel --quiet --no-deps --no-build-isolation -w dist .
	python tools/check_wheel.py dist/evergemm-*.whl

full-wheel: .venv/.build-requirements
	pip install --quiet --group gates
	python tools/full_wheel.py

release-wheel: .venv/.build-requirements
	pip install --quiet --group gates --group release
	python tools/release_wheel.py

clean:
	rm -rf build dist

# The folder is made once; it holds pip's cmake and ninja, because distributions' are often too old.
.venv/.build-requirements: pyproject.toml
	sh tools/check_machine.sh
	python3 -m venv .venv
	.venv/bin/pip install --quiet 'pip>=25.1'
	@echo 'Installing torch and the build tools into .venv (some gigabytes; a few minutes, once) ...'
	.venv/bin/pip install $(BUILD_REQUIREMENTS)
	@touch $@
