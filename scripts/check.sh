#!/usr/bin/env bash
# Style, types, layers and all quick tests. BIN is the folder with the tools: BIN=.venv/bin scripts/check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
names=()
pids=()

# start NAME COMMAND...: run in the background, keep the output for the end
start() {
    "${@:2}" >"$logs/$1" 2>&1 &
    names+=("$1")
    pids+=($!)
}

style() {
    local status=0
    "$BIN/ruff" check --quiet . || status=1
    "$BIN/ruff" format --check --quiet . || { echo "Some files are not formatted; type: $BIN/ruff format ." && status=1; }
    return $status
}

start style style
start types "$BIN/mypy"
start layers "$BIN/lint-imports" --no-logo
# Everything but what is marked slow or integration: environments, rewards, losses, batches, engines, learners.
quick=(-q -m "not slow and not integration")
start tests "$BIN/python" -m pytest "${quick[@]}" -n 2 --dist worksteal tests --ignore=tests/integration

# The arithmetic once more with kernels that have no vector instructions. Their sums are rounded elsewhere, above all in
# bfloat16, so a test that asserts the rounding of one processor fails here and not first on another machine.
start plain-kernels env ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
    "$BIN/python" -m pytest "${quick[@]}" \
    tests/learner/test_learner.py tests/learner/test_precision.py tests/policy/test_models.py \
    tests/policy/test_torch_engine.py

failed=()
for i in "${!pids[@]}"; do
    if wait "${pids[$i]}"; then
        echo "ok      ${names[$i]}: $(grep . "$logs/${names[$i]}" | tail -n 1)"
    else
        failed+=("${names[$i]}")
        echo "FAILED  ${names[$i]}"
        sed 's/^/    /' "$logs/${names[$i]}"
    fi
done

if ((${#failed[@]})); then
    echo "Checks failed: ${failed[*]}" >&2
    exit 1
fi
