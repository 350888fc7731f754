#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Says whether this machine has what pip cannot bring, and the one line to paste where it has not.
#   tools/check_machine.sh [--tests]    exit 0, or 1 with the line to paste
#   tools/check_machine.sh --compiler   prints the C++ compiler to use: g++, or a newer one where g++ is older than 12
# Runs before anything else is installed: POSIX shell only.
set -eu

compiler() {
  for candidate in ${CXX:-} g++ g++-12 g++-13 g++-14 g++-15; do
    major=$("$candidate" -dumpversion 2>/dev/null | cut -d. -f1) || continue
    case $major in '' | *[!0-9]*) continue ;; esac
    if [ "$major" -ge 12 ]; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

if [ "${1:-}" = --compiler ]; then
  compiler || echo g++
  exit 0
fi

missing=
packages=
need() { # what is missing, the package that brings it
  missing="${missing:+$missing, }$1"
  packages="${packages:+$packages }$2"
}

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  need 'python3 >= 3.10' 'python3 python3-venv'
elif ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
  need 'python3 venv' python3-venv
fi
if ! compiler >/dev/null; then
  # Ubuntu 22.04's g++ is 11
  if grep -qs '^VERSION_ID="22.04"' /etc/os-release; then need 'g++ >= 12' g++-12; else need 'g++ >= 12' g++; fi
fi
command -v make >/dev/null 2>&1 || need make make
command -v git >/dev/null 2>&1 || need git git
if [ "${1:-}" = --tests ]; then
  [ -e /usr/include/gtest/gtest.h ] || [ -e /usr/local/include/gtest/gtest.h ] || need GoogleTest libgtest-dev
  # torch.compile builds against them
  python3 -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
    2>/dev/null || need "Python's headers" python3-dev
fi

if [ -n "$missing" ]; then
  sudo=
  [ "$(id -u)" = 0 ] || sudo='sudo '
  echo "evergemm: this machine lacks: $missing. Paste this line, then try again:" >&2
  echo "${sudo}apt-get update && ${sudo}apt-get install -y $packages" >&2
  exit 1
fi
