#!/usr/bin/env bash
# What there is to check on a machine with an NVIDIA GPU, without network, in parts: each has a time limit and writes its own
# record (PART.json, PART.log) when it ends, so that a check which is killed loses no part but the one it was in.
#
#   benchmarks/gpu_check.sh [--out FOLDER] [PART...]      FOLDER: default $OUT, else benchmarks/results/gpu-check-DATE
#
# Parts, all of them unless named; "first" stands for the first six, which take less than eight minutes:
#   build       110 s  the package, with CUDA kernels for this GPU
#   paths        40 s  the path and the kernels of every baseline's step, in every precision
#   kernels      60 s  the CUDA kernels against the float64 oracle
#   capture      50 s  every baseline as a CUDA graph, and what cannot be captured
#   iterations  140 s  the iteration table of dcgan and wgan-gp
#   bandwidth    40 s  the large cells of perturb and attack_step, beside a copy
#   triton      600 s  the Triton kernels against the oracle, side by side if pytest-xdist is there
#   tests      1800 s  all other tests
#   sanitizer   900 s  compute-sanitizer: stray and misaligned accesses (memcheck), shared memory (racecheck)
#   benchmarks 3600 s  every suite
#
#   PYTHON=python3                 interpreter of an environment with torch for CUDA
#   DATGAN_FAST_WHEELS=FOLDER      wheels to install first, as they are: what the build and the tests need and the machine lacks,
#                                  such as scikit-build-core; fetched elsewhere, for Python 3.12, by
#                                    pip download -d FOLDER --only-binary :all: --python-version 3.12 scikit-learn scipy matplotlib \
#                                      pyyaml safetensors tensorboard jinja2 tqdm pytest pytest-benchmark pytest-xdist hypothesis \
#                                      setuptools scikit-build-core pybind11 cmake ninja
#                                    pip download -d FOLDER --no-deps torch-fidelity
#   DATGAN_FAST_CUDA_ARCHS=...     architectures to build for; default: this GPU's
#   DATGAN_FAST_CHECK_SECONDS=...  another limit, for every part
#   DATGAN_FAST_COMMIT=...         commit to record where git is absent
#   DATGAN_FAST_BENCH_FULL=1       every benchmark cell
#
# Every part runs whether or not those before it passed. Exit status: 0 if all passed, 1 if not, 2 if none can run here.
set -u -o pipefail
root=$(realpath "$(dirname "$0")/..")
first=(build paths kernels capture iterations bandwidth)
all=("${first[@]}" triton tests sanitizer benchmarks)
declare -A limits=([build]=110 [paths]=40 [kernels]=60 [capture]=50 [iterations]=140 [bandwidth]=40
    [triton]=600 [tests]=1800 [sanitizer]=900 [benchmarks]=3600)

command="benchmarks/gpu_check.sh $*"
results=${OUT:-$root/benchmarks/results/gpu-check-$(date -u +%Y%m%dT%H%M%SZ)}
chosen=()
while (($#)); do
    case $1 in
        --out) results=${2:?--out needs a folder}; shift ;;
        first) chosen+=("${first[@]}") ;;
        *)
            [[ -v "limits[$1]" ]] || { echo "gpu_check: $1 is no part; choose of: first ${all[*]}" >&2; exit 2; }
            chosen+=("$1")
            ;;
    esac
    shift
done
((${#chosen[@]})) || chosen=("${all[@]}")
mkdir -p "$results" || exit 2
results=$(realpath "$results")
cd "$root" || exit 2
export python=${PYTHON:-python3}
work=$(mktemp -d)
export work
trap 'rm -rf "$work"' EXIT

test_with() { "$python" -m pytest -p no:cacheprovider --benchmark-skip -rs "$@"; }

measure_with() { "$python" -m pytest -p no:cacheprovider --benchmark-only --cells "$work/cells.json" "$@"; }

build() { # and are both kernels there? Tests of those that are not would be left out in silence.
    if [[ -z ${DATGAN_FAST_CUDA_ARCHS:-} ]]; then
        local capability
        capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1) || return
        export DATGAN_FAST_CUDA_ARCHS=${capability//[. ]/}
    fi
    DATGAN_FAST_CUDA=1 "$python" -m pip install --no-build-isolation --no-deps --no-index . || return
    "$python" - <<'PYTHON'
import datgan_fast, sys

problems = {name: problem for name, problem in datgan_fast.backends().items() if name in ("cuda", "triton") and problem}
sys.exit("; ".join(f"{name}: {problem}" for name, problem in problems.items()))
PYTHON
}

paths() { "$python" benchmarks/paths.py --out "$work/paths.json"; }

kernels() { test_with tests/csrc/test_kernels_on_gpu.py -k "not triton"; }

capture() {
    test_with tests/training/test_iteration.py -m gpu \
        -k "replays_are or warm_up or insists or goes_on or capture_after or nothing_that or host_waits"
}

iterations() {
    measure_with --benchmark-min-rounds=15 --benchmark-columns=min,median,rounds benchmarks/bench_iteration.py \
        -k "test_iteration and (dcgan or wgan-gp)"
}

bandwidth() {
    measure_with --benchmark-columns=min,median,rounds benchmarks/bench_kernels.py \
        -k "341x3x256x256 and cuda-graph and (float32 or bfloat16)"
}

triton() {
    local side_by_side=()
    if "$python" -c "import xdist" 2> /dev/null; then side_by_side=(-n 8); fi
    test_with tests/csrc/test_kernels_on_gpu.py -k triton ${side_by_side[@]+"${side_by_side[@]}"}
}

tests() { test_with tests --ignore tests/csrc/test_kernels_on_gpu.py; }

sanitizer() {
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

benchmarks() { measure_with --benchmark-min-rounds=15 --benchmark-columns=min,median,rounds benchmarks; }

export -f test_with measure_with "${all[@]}"

if [[ -n ${DATGAN_FAST_WHEELS:-} ]]; then
    # The machine keeps its own torch and what belongs to it.
    mapfile -t wheels < <(find "$DATGAN_FAST_WHEELS" -name '*.whl' | grep -vE '/(torch|torchvision|triton|numpy|nvidia_[^/]*)-')
    "$python" -m pip install --quiet --no-index --no-deps "${wheels[@]}" || exit 2
fi
"$python" benchmarks/preflight.py || exit 2

failed=0
for part in "${chosen[@]}"; do
    limit=${DATGAN_FAST_CHECK_SECONDS:-${limits[$part]}}
    echo "== $part, at most $limit s"
    rm -f "$results/$part.json" "$work/cells.json" "$work/paths.json"
    began=$SECONDS
    timeout --kill-after=5 "$limit" bash -u -o pipefail -c "$part" 2>&1 | tee "$results/$part.log"
    code=${PIPESTATUS[0]}
    late=""
    ((code == 124 || code == 137)) && late=", out of time"
    echo "== $part: exit status $code after $((SECONDS - began)) s$late"
    ((code == 0)) || failed=1
    "$python" benchmarks/record.py --out "$results/$part.json" --command "$command" --status "$part=$code" \
        --environment "$work/environment.json" --section "benchmarks=$work/cells.json" \
        --section "paths=$work/paths.json" || failed=1
done

echo "results: $results"
measured=()
for part in iterations bandwidth benchmarks; do
    if grep -qs '"benchmarks": \[' "$results/$part.json"; then measured+=("$results/$part.json"); fi
done
if ((${#measured[@]})); then
    echo "tables and plot, into docs/performance.md and the README: $python benchmarks/report.py ${measured[0]}"
    echo "the targets:"
    "$python" benchmarks/targets.py "${measured[@]}"
fi
exit "$failed"
