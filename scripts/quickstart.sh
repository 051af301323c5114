#!/usr/bin/env bash
# From a fresh clone to a model that has learnt 24 invented facts: install, fetch the built-in model, train with MixSD.
# Options are passed on, for example: scripts/quickstart.sh --model.mixing_rate 0.5
set -euo pipefail
cd "$(dirname "$0")/.."

echo "Installing into .venv (a few minutes on first use)"
bash scripts/install.sh
exec .venv/bin/python -m mixsd_lightning fit --config configs/quickstart.yaml "$@"
