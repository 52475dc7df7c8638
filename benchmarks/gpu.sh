#!/usr/bin/env bash
# One command, at most 8 minutes, on a machine with a GPU: installs scdfm, measures, writes benchmarks/results/gpu.md.
#
#   benchmarks/gpu.sh [WHEELS]         WHEELS: a folder of wheels of scdfm and what it needs, where no index can be reached
#   LIMIT=300 benchmarks/gpu.sh        begins nothing that would end after so many seconds
#   DEVICE=cpu benchmarks/gpu.sh       the same with small sizes on a CPU, which tests this script
#
# What is already measured is kept (results/gpu.json): the most wanted comes first, and a second call goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda}
out=${OUT:-benchmarks/results}
python=${PYTHON:-python3}
begin=$SECONDS
if ! "$python" -c 'import scdfm' 2>/dev/null; then
  if [ -n "${1:-}" ]; then
    # Beside what the machine's own python has, torch above all: an environment made from an environment would hide it.
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --upgrade --target build/gpu "$1"/*.whl
    export PYTHONPATH="$PWD/build/gpu${PYTHONPATH:+:$PYTHONPATH}"
  else
    "$python" -m venv build/gpu
    python=build/gpu/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check .
  fi
fi
echo "installed after $((SECONDS - begin)) s"
exec "$python" benchmarks/gpu.py --device "$device" --out "$out" --seconds $((${LIMIT:-470} - SECONDS + begin))
