#!/usr/bin/env bash
# Everything there is to check on a machine with an NVIDIA GPU: builds the package without network, runs all tests (the
# marker "gpu" included), compute-sanitizer on a small case and all benchmarks, and writes one result file.
#
#   benchmarks/gpu_check.sh [RESULT_FOLDER]        default: benchmarks/results
#
#   PYTHON=python3                 interpreter; its environment has torch, pytest, pytest-benchmark, pybind11, cmake, ninja
#   DATGAN_FAST_COMMIT=...         commit to record where git is absent
#   DATGAN_FAST_CHECK_SKIP="..."   parts to leave out: build tests sanitizer benchmarks
#   DATGAN_FAST_BENCH_FULL=1       every benchmark cell
#
# Each part runs whether or not those before it passed; the exit status is 0 only if all passed.
set -u -o pipefail
root=$(realpath "$(dirname "$0")/..")
results=$(realpath -m "${1:-$root/benchmarks/results}")
cd "$root" || exit
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
statuses=()
failed=0

part() {  # part NAME COMMAND...: runs it unless left out, remembers how it ended
    local name=$1
    shift
    if [[ " ${DATGAN_FAST_CHECK_SKIP:-} " == *" $name "* ]]; then return; fi
    echo "== $name"
    local began=$SECONDS code=0
    "$@" || code=$?
    echo "== $name: exit status $code after $((SECONDS - began)) s"
    statuses+=(--status "$name=$code")
    ((code == 0)) || failed=1
}

build() {  # and are both kernels there? Tests of those that are not would be left out in silence.
    "$python" -m pip install --no-build-isolation --no-deps --no-index . || return
    "$python" - <<'PYTHON'
import datgan_fast, sys

problems = {name: problem for name, problem in datgan_fast.backends().items() if name in ("cuda", "triton") and problem}
sys.exit("; ".join(f"{name}: {problem}" for name, problem in problems.items()))
PYTHON
}

tests() { "$python" -m pytest -p no:cacheprovider --benchmark-skip -rs tests; }

sanitizer() {  # memcheck: stray and misaligned accesses; racecheck: shared memory
    local tool
    tool=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
    if [[ ! -x $tool ]]; then
        echo "compute-sanitizer was not found; it comes with the CUDA toolkit: set CUDA_HOME or PATH"
        return 127
    fi
    local check code=0
    for check in memcheck racecheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$check" --error-exitcode 99 \
            "$python" benchmarks/sanitizer_case.py || code=$?
    done
    return "$code"
}

benchmarks() {
    "$python" -m pytest -p no:cacheprovider benchmarks --benchmark-only --benchmark-min-rounds=15 \
        --benchmark-json "$work/benchmarks.json" --benchmark-columns=min,median,rounds
}

part build build
part tests tests
part sanitizer sanitizer
part benchmarks benchmarks

file=$results/gpu-check-$(date -u +%Y%m%dT%H%M%SZ).json
"$python" benchmarks/record.py --out "$file" --command "benchmarks/gpu_check.sh $*" \
    --section "benchmarks=$work/benchmarks.json" ${statuses[@]+"${statuses[@]}"} || exit 1
echo "result: $file"
echo "its tables and plot, into the README: $python benchmarks/report.py $file"
echo "the targets:"
"$python" benchmarks/targets.py "$file"
exit "$failed"
