#!/usr/bin/env bash
# Run the whole test suite in .venv, which is made if there is none. Options are passed on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/install.sh test
# One thread per process: two threads beside another busy process wait for one another at every small product.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
