#!/bin/sh
# Cross-compile embag for another processor, and run tests under QEMU's emulation:
# make test-s390x ARGS="tests/lookups -x". Everything is in build/s390x, or in build/aarch64.
#
# It runs on Debian and Ubuntu. Packages of Debian for that processor are unpacked, not installed:
# its Python and NumPy run the tests. `python` is the Python of the project, with setuptools,
# Cython and NumPy. Emulation says nothing of time.
set -eu
cd "$(dirname "$0")/.."
. tools/debian.sh

processor=$1 # as gcc and QEMU name it
shift
case $processor in
    aarch64) architecture=arm64 wheels=ml_dtypes ;; # 64-bit Arm
    s390x) architecture=s390x wheels= ;;            # big-endian; PyPI has no wheels for it
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
exec $qemu -L $root -0 $emulated $root/usr/bin/$name "\$@"
END
chmod +x "$emulated"

if [ -n "$wheels" ] && [ ! -e "$folder/wheels" ]; then
    python -m pip install -q --target "$folder/wheels" --no-deps --only-binary=:all: \
        --python-version "$version" --implementation cp \
        --platform "manylinux_2_28_$processor" --platform "manylinux_2_17_$processor" "$wheels"
fi

# The other levels are of x86-64: setup.py finds that this compiler has none of them, and says so.
echo "building embag for $processor: a minute or two"
numpy=$root/usr/lib/python3/dist-packages/numpy/_core/include
CC=$machine-gcc LDSHARED="$machine-gcc -shared" \
    CFLAGS="-I$root/usr/include/$name -I$numpy -idirafter $root/usr/include" \
    SETUPTOOLS_EXT_SUFFIX=.cpython-$(echo "$version" | tr -d .)-$machine.so \
    python setup.py -q build --build-lib "$folder/lib" --build-temp "$folder/objects" \
    > "$folder/build.log" 2>&1 || {
    cat "$folder/build.log"
    exit 1
}
PYTHONPATH=$folder/lib:$folder/wheels \
    "$emulated" -P -m pytest -p no:cacheprovider "$@"
