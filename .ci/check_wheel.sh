#!/usr/bin/env bash
# Does one and the same wheel serve every torch? Installs it beside each of these versions, in an environment of its own, and runs the
# operations' tests on it from a copy of tests/, where no checkout hides what is installed.
#
#   .ci/check_wheel.sh dist/datgan_fast-*.whl 2.6.0 2.15.0
#
# It fetches gigabytes, so CI does not run it. PYTHON=python3.11 chooses the interpreter, which must be the wheel's. ENVIRONMENTS=FOLDER
# keeps the environments there and takes those that are there, without it they are made anew.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=$(realpath "$1")
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -r tests pyproject.toml "$scratch"
for torch in "$@"; do
    venv=${ENVIRONMENTS:-$scratch}/torch-$torch
    [ -d "$venv" ] || "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet "torch==$torch" torchvision "datgan-fast @ file://$wheel" pytest hypothesis
    "$venv/bin/pip" install --quiet --no-deps --force-reinstall "$wheel" # the same version, built again
    (
        cd "$scratch"
        "$venv/bin/python" -c "import sys, datgan_fast as dat, torch; print(torch.__version__, dat.__file__, dat.backends()); sys.exit(dat.backends()['cpu'])"
        OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/method/test_attack_ops.py \
            tests/method/test_attack_loss.py tests/method/test_attack_step.py tests/method/test_attack_step_arguments.py \
            tests/method/test_perturb.py tests/method/test_registered_operations.py tests/method/test_formulas.py \
            tests/method/test_discriminator_step.py
    )
done
