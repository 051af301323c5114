#!/usr/bin/env bash
# Make .venv if there is none and install the project into it, with the extras given (install.sh test,dev).
# PYTHON names the interpreter to use (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "error: $("$python" --version) is too old; install Python 3.10 or newer, or set PYTHON to one" >&2
    exit 2
  }
  "$python" -m venv --clear .venv
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)

# On Linux the default torch brings gigabytes of CUDA: without an NVIDIA GPU take the CPU build.
if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  "${pip[@]}" install --no-deps --retries 1 --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)" ||
    echo "note: the CPU build of torch is out of reach; installing the default build" >&2
fi
"${pip[@]}" install -c constraints.txt -e ".${1:+[$1]}"
