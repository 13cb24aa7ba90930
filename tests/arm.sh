#!/bin/sh
# Runs the tests of the kernels on an emulated 64-bit ARM processor (qemu-user), on Debian without being root:
#
#     sh tests/arm.sh DIR [PYTEST ARGUMENTS]      default: all of tests/test_kernels.py
#
# DIR (1.2 GB; kept, so that a second run begins at once) gets the emulator, an ARM Python of the same Debian with its
# libraries, and NumPy, Numba and pytest for it from PyPI. Nothing is installed in the system. The processor has the
# dot products of bytes (`sdot`); QEMU_CPU=cortex-a57 is one without. An emulated compilation takes 20 times as long.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1" && cd "$1" && dir=$(pwd) && shift
[ $# -gt 0 ] || set -- tests/test_kernels.py

if [ ! -e done ]; then
    mkdir -p lists/partial archives/partial arm64
    apt="apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::Lists=$dir/lists -o Debug::NoLocking=1"
    $apt update
    $apt download libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libssl3 libsqlite3-0 \
        libcrypt1 libuuid1 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib
    apt-get -q download qemu-user-static
    for package in *_arm64.deb; do dpkg -x "$package" arm64; done
    dpkg -x qemu-user-static_*_amd64.deb emulator
    python3 -m pip install -q --target packages --only-binary=:all: --python-version 3.11 --implementation cp \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
        numpy numba pytest hypothesis
    touch done
fi
cd "$here"
export QEMU_CPU="${QEMU_CPU:-max}" PYTHONPATH="$dir/packages:$here:$here/tests" NUMBA_CACHE_DIR="$dir/cache"
exec "$dir/emulator/usr/bin/qemu-aarch64-static" -L "$dir/arm64" "$dir/arm64/usr/bin/python3.11" -m pytest -q \
    -p no:cacheprovider --noconftest --durations=10 "$@"
