#!/usr/bin/env bash
# Lints, type-checks and tests; makes .venv first where there is none.
#   bash tests/run.sh                          everything fast
#   bash tests/run.sh tests/sweep -k shard     arguments go to pytest
#   PYTHON=python3.12 bash tests/run.sh        with another interpreter
#   JAX_PLATFORMS=cuda bash tests/run.sh -n 0 -m gpu
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

make_venv test
"$VENV/bin/python" - <<'PY'
import importlib.metadata, platform
names = 'jax jaxlib flax optax orbax-checkpoint numpy pytest ruff pyrefly'
versions = [f'{name} {importlib.metadata.version(name)}' for name in names.split()]
print(f'python {platform.python_version()}', *versions, sep=', ')
PY

"$VENV/bin/ruff" check
"$VENV/bin/ruff" format --check
"$VENV/bin/pyrefly" check --python-interpreter-path "$VENV/bin/python"

# Paths given as arguments replace these. Doctests run in the same call;
# benchmarks are programs that may need PyTorch, and hold no tests.
paths=(tests bdjax)
for argument in "$@"; do
  if [[ -e "${argument%%::*}" ]]; then paths=(); fi
done
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
"$VENV/bin/python" -m pytest --doctest-modules --ignore=tests/benchmarks \
  -m 'not slow and not gpu' -n 2 --dist loadfile \
  ${paths[@]+"${paths[@]}"} "$@"
