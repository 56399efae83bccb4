#!/bin/sh
# Cross-compile embag for another processor, and run tests under QEMU's emulation:
# make test-s390x ARGS="tests/lookups -x". Everything is in build/s390x, or in build/aarch64.
#
# It runs on Debian and Ubuntu. Packages of Debian for that processor are unpacked, not installed:
# its Python and NumPy run the tests. `python` is the Python of the project, with setuptools,
# Cython and NumPy. Emulation says nothing of time. With -O1 in the environment variable OPTIMIZE,
# gcc takes a third of the time.
set -eu
cd "$(dirname "$0")/.."
. tools/debian.sh

processor=$1 # as gcc and QEMU name it
shift
case $processor in
    aarch64) # 64-bit Arm: its conversions of halves and bytes, and its ways to prefetch
        architecture=arm64 wheels=ml_dtypes
        # A processor without pointer authentication, which takes QEMU four times the time.
        options='-cpu cortex-a72'
        tests="tests/lookups/test_low_precision.py tests/process/test_strategies.py"
        instructions='fcvtl\sv fcvtn\sv ucvtf\sv uxtl\sv fmla\sv prfm\spldl1keep prfm\spldl2keep'
        ;;
    s390x) # big-endian: the bytes of files and of rows; PyPI has no wheels for it
        architecture=s390x wheels='' options='' instructions=''
        tests="tests/stored tests/tables/test_byte_orders.py tests/tables/test_remapped_tables.py
            tests/lookups/test_errors.py tests/gradients/test_optimizers.py
            tests/gradients/test_optimizers_of_low_precision.py tests/collection/test_collection.py"
        ;;
    *)
        echo "processor must be aarch64 or s390x, got $processor"
        exit 1
        ;;
esac
machine=$processor-linux-gnu
folder=$PWD/build/$processor
root=$folder/root
mkdir -p "$folder"

# The compiler, the emulator and the key of Debian's archive.
find_tools() {
    command -v "$machine-gcc" && ls "/usr/$machine/include/stdlib.h" &&
        { command -v "qemu-$processor" || command -v "qemu-$processor-static"; } &&
        ls /usr/share/keyrings/debian-archive-keyring.gpg
}
if ! find_tools > /dev/null 2>&1; then
    install_tools "gcc-$machine" "libc6-dev-$architecture-cross" qemu-user debian-archive-keyring
fi
qemu=$(command -v "qemu-$processor" || command -v "qemu-$processor-static")

if [ ! -e "$folder/.unpacked" ]; then
    rm -rf "$root" "$folder/wheels"
    (
        # The NumPy of Debian 12 is older than embag needs.
        configure_apt "$folder/apt" forky deb "$architecture"
        apt-get -q -y --no-install-recommends --download-only install \
            python3 libpython3-dev libgomp1 python3-numpy python3-safetensors \
            python3-pytest python3-hypothesis
    )
    # Debian makes these links when it installs packages.
    mkdir -p "$root/usr/lib/$machine"
    ln -s usr/lib "$root/lib"
    ln -s blas/libblas.so.3 lapack/liblapack.so.3 "$root/usr/lib/$machine"
    for package in "$folder"/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    touch "$folder/.unpacked"
fi
name=$(readlink "$root/usr/bin/python3") # such as python3.14
version=${name#python}

# Tests start sys.executable: it must be a program that this machine runs.
emulated=$root/usr/bin/emulated-python
cat > "$emulated" << END
#!/bin/sh
exec $qemu $options -L $root -0 $emulated $root/usr/bin/$name "\$@"
END
chmod +x "$emulated"

if [ -n "$wheels" ] && [ ! -e "$folder/wheels" ]; then
    python -m pip install -q --target "$folder/wheels" --no-deps --only-binary=:all: \
        --python-version "$version" --implementation cp \
        --platform "manylinux_2_28_$processor" --platform "manylinux_2_17_$processor" "$wheels"
fi

# gcc obeys the last -O of its command line.
compiler=$folder/compiler
cat > "$compiler" << END
#!/bin/sh
exec $machine-gcc "\$@" ${OPTIMIZE-}
END
chmod +x "$compiler"

# The other levels are of x86-64: setup.py finds that this compiler has none of them, and says so.
echo "building embag for $processor: a minute or two"
numpy=$root/usr/lib/python3/dist-packages/numpy/_core/include
CC=$compiler LDSHARED="$compiler -shared" \
    CFLAGS="-I$root/usr/include/$name -I$numpy -idirafter $root/usr/include" \
    SETUPTOOLS_EXT_SUFFIX=.cpython-$(echo "$version" | tr -d .)-$machine.so \
    python setup.py -q build --build-lib "$folder/lib" --build-temp "$folder/objects" \
    > "$folder/build.log" 2>&1 || {
    cat "$folder/build.log"
    exit 1
}

# All bodies are inlined. On Arm, halves and bytes are converted by vectors, and rows are prefetched.
module=$(ls "$folder"/lib/embag/_core.*.so)
if "$machine-nm" "$module" | grep -E "reduce_block|take_row|fetch_row|take_half"; then
    echo "these are not inlined"
    exit 1
fi
"$machine-objdump" -d "$module" > "$folder/_core.s"
for instruction in $instructions; do
    echo "$(grep -c "$instruction" "$folder/_core.s") $instruction" || {
        echo "the kernels have no $instruction"
        exit 1
    }
done

run_tests() {
    PYTHONPATH=$folder/lib:$folder/wheels "$emulated" -P -m pytest -p no:cacheprovider "$@"
}
if [ $# != 0 ]; then
    run_tests "$@"
    exit
fi
# Left out for their time: test_low_precision.py on s390x (a third of all), and what is marked
# thorough. Left out on s390x since it maps .safetensors files: test_saving_and_loading.py.
# Each file has a process of its own, since QEMU 7.2 keeps 240 KB of each thread that has ended.
for file in tests/tables/test_packed_tables.py tests/tables/test_quantizing.py \
    tests/lookups/test_results.py tests/gradients/test_gradients.py $tests; do
    run_tests -m "not slow and not thorough" "$file"
done
