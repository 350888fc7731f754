#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiler launcher: runs the compile and prints the seconds it took with the object's name. docs/tuning_log.md keeps them.
# Usage: timed_compile.sh COMPILER ARGUMENTS...
begin=$(date +%s%N)
"$@" || exit $?
end=$(date +%s%N)
object=
previous=
for argument in "$@"; do
  if [ "$previous" = -o ]; then object=$argument; fi
  previous=$argument
done
echo "compiled in $(( (end - begin) / 10000000 )) cs: $(basename "$object")"
