#!/usr/bin/env bash
# Checks the package on this machine's GPU, within 400 s; --rehearse does the same without one. See check.py.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python3}" -m benchmarks.gpu.check "$@"
