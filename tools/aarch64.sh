#!/bin/sh
# Cross-compile embag for 64-bit Arm, check the instructions of its kernels, and run tests under
# QEMU's emulation: make test-aarch64 ARGS="tests/lookups -x". Everything is in build/aarch64.
#
# It runs on Debian and Ubuntu. Debian 12's packages for arm64 are unpacked, not installed: its
# Python 3.11 runs the tests. NumPy and pytest are wheels of PyPI. `python` is the Python of the
# project, with setuptools, Cython and NumPy. Emulation says nothing of time.
set -eu
cd "$(dirname "$0")/.."
folder=$PWD/build/aarch64
root=$folder/root
mkdir -p "$folder"

# The compiler, the emulator and the key of Debian's archive.
find_tools() {
    command -v aarch64-linux-gnu-gcc && command -v aarch64-linux-gnu-objdump &&
        { command -v qemu-aarch64 || command -v qemu-aarch64-static; } &&
        ls /usr/share/keyrings/debian-archive-keyring.gpg
}
if ! find_tools > /dev/null 2>&1; then
    needed="gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user debian-archive-keyring"
    if [ "$(id -u)" != 0 ]; then
        echo "no cross compiler or emulator: apt install $needed"
        exit 1
    fi
    apt-get -q update
    # shellcheck disable=SC2086
    apt-get -q -y --no-install-recommends install $needed
fi
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static)

# Python and the libraries that it and NumPy need, of Debian's arm64. apt has a configuration of
# its own here: another architecture, and a system on which nothing is installed.
if [ ! -e "$folder/.unpacked" ]; then
    apt=$folder/apt
    rm -rf "$apt" "$root"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$root"
    : > "$apt/status"
    cat > "$apt/sources.list" << EOF
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
EOF
    cat > "$apt/apt.conf" << EOF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Debug::NoLocking "1";
EOF
    APT_CONFIG=$apt/apt.conf apt-get -q update
    APT_CONFIG=$apt/apt.conf apt-get -q -y --no-install-recommends --download-only install \
        python3 libpython3.11-dev libgomp1 libstdc++6
    for package in "$apt"/archives/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    # Tests start sys.executable: it must be a program that this machine runs.
    cat > "$root/usr/bin/emulated-python" << EOF
#!/bin/sh
exec $qemu -L $root -0 $root/usr/bin/emulated-python $root/usr/bin/python3.11 "\$@"
EOF
    chmod +x "$root/usr/bin/emulated-python"
    touch "$folder/.unpacked"
fi
if [ ! -e "$folder/.packages" ]; then
    python -m pip install -q --upgrade --target "$folder/packages" --only-binary=:all: \
        --python-version 3.11 --implementation cp \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
        "numpy<2.5" ml_dtypes pytest hypothesis
    touch "$folder/.packages"
fi

# The other levels are of x86-64: setup.py finds that this compiler has none of them, and says so.
echo "building embag for 64-bit Arm: a minute or two"
CC=aarch64-linux-gnu-gcc LDSHARED="aarch64-linux-gnu-gcc -shared" \
    CFLAGS="-I$root/usr/include/python3.11 -idirafter $root/usr/include" \
    SETUPTOOLS_EXT_SUFFIX=.cpython-311-aarch64-linux-gnu.so \
    python setup.py -q build --build-lib "$folder/lib" --build-temp "$folder/objects" \
    > "$folder/build.log" 2>&1 || {
    cat "$folder/build.log"
    exit 1
}

# Halves and bytes are converted by vectors, rows are prefetched, and no body was left out of line.
module=$folder/lib/embag/_core.cpython-311-aarch64-linux-gnu.so
aarch64-linux-gnu-objdump -d "$module" > "$folder/_core.s"
for instruction in "fcvtl\sv" "fcvtn\sv" "ucvtf\sv" "uxtl\sv" "fmla\sv" "prfm\spldl1keep" "prfm\spldl2keep"; do
    echo "$(grep -c "$instruction" "$folder/_core.s") $instruction" || {
        echo "the kernels have no $instruction"
        exit 1
    }
done
if aarch64-linux-gnu-nm "$module" | grep -E "reduce_block|take_row|fetch_row|take_half"; then
    echo "these are not inlined"
    exit 1
fi

if [ $# = 0 ]; then
    set -- tests/lookups/test_results.py tests/lookups/test_low_precision.py \
        tests/gradients/test_gradients.py tests/tables/test_packed_tables.py \
        tests/tables/test_quantizing.py tests/process/test_strategies.py
fi
PYTHONPATH=$folder/lib:$folder/packages \
    "$root/usr/bin/emulated-python" -P -m pytest -p no:cacheprovider "$@"
