#!/usr/bin/env bash
# One command, at most 8 minutes, on a machine with a GPU: installs scdfm, measures, writes benchmarks/results/gpu.md.
#
#   benchmarks/gpu.sh [WHEELS]         WHEELS: a folder of wheels of scdfm and what it needs, where no index can be reached
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
  "$python" -m venv --system-site-packages build/gpu
  python=build/gpu/bin/python
  if [ -n "${1:-}" ]; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$1" scdfm
  else
    "$python" -m pip install --quiet --disable-pip-version-check .
  fi
fi
echo "installed after $((SECONDS - begin)) s"
exec "$python" benchmarks/gpu.py --device "$device" --out "$out" --seconds $((470 - SECONDS + begin))
