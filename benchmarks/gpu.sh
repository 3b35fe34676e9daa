#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU should run, in resumable stages of under 8 minutes: gpu.sh --help.
# The Python is $PYTHON, else that of .venv, else python3.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
if [[ -z ${PYTHON:-} && ! -x $python ]]; then
  python=python3
fi
if ! command -v "$python" > /dev/null; then
  echo "gpu.sh: error: no $python; run make setup, or set PYTHON" >&2
  exit 2
fi
if ! "$python" -Pc 'import sys, importlib.util as i; sys.exit(not all(map(i.find_spec, ("depthzoo", "torch"))))'; then
  echo "gpu.sh: error: $python has no depthzoo: run make setup, or pip install -e '${root}[dev,gpu]'" >&2
  exit 2
fi
exec "$python" "$root/benchmarks/gpu.py" "$@"
