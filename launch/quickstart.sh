#!/usr/bin/env bash
# Makes .venv, installs bdjax and runs the quickstart:
#   bash launch/quickstart.sh [flags of launch.quickstart]
# Relative paths in flags start at the root of the repository. Extras to install
# go into BDJAX_EXTRAS, such as BDJAX_EXTRAS=cuda12 for an NVIDIA GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

make_venv "${BDJAX_EXTRAS:-}"
exec "$VENV/bin/python" -m launch.quickstart "$@"
