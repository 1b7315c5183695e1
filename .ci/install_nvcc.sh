#!/usr/bin/env bash
# nvcc and the static CUDA runtime, nothing else of the toolkit, in a manylinux_2_28 container; cibuildwheel calls it before all builds.
set -euo pipefail
version=${CUDA_VERSION:-13-0}
case $(uname -m) in
    x86_64) platform=x86_64 ;;
    aarch64) platform=sbsa ;;
    *) echo "install_nvcc: CUDA has no packages for $(uname -m)" >&2; exit 1 ;;
esac
dnf install -y 'dnf-command(config-manager)'
dnf config-manager --add-repo "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$platform/cuda-rhel8.repo"
dnf install -y "cuda-nvcc-$version" "cuda-cudart-devel-$version"
