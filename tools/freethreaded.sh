#!/bin/sh
# Build CPython 3.13 without the GIL, and embag for it, and run tests:
# make test-freethreaded ARGS="tests/process -x". Everything is in build/freethreaded.
#
# It runs on Debian and Ubuntu. Debian 13 has the source, but no such package. NumPy and pytest are
# wheels of PyPI. `python` is the Python of the project, whose pip downloads them.
set -eu
cd "$(dirname "$0")/.."
. tools/debian.sh
folder=$PWD/build/freethreaded
interpreter=$folder/python/bin/python3.13t
mkdir -p "$folder"

# The compiler, and the libraries of the modules that tests need.
find_tools() {
    command -v gcc && command -v make && command -v xz &&
        ls /usr/include/zlib.h /usr/include/openssl/ssl.h /usr/include/sqlite3.h \
            /usr/share/keyrings/debian-archive-keyring.gpg &&
        find /usr/include -maxdepth 2 -name ffi.h | grep -q .
}
if ! [ -e "$interpreter" ] && ! find_tools > /dev/null 2>&1; then
    install_tools gcc make xz-utils zlib1g-dev libssl-dev libsqlite3-dev libffi-dev \
        debian-archive-keyring
fi

if [ ! -e "$interpreter" ]; then
    rm -rf "$folder/source"
    mkdir "$folder/source"
    (
        configure_apt "$folder/apt" trixie deb-src
        cd "$folder/apt/archives"
        apt-get -q --download-only source python3.13
    )
    tar -xf "$folder"/apt/archives/python3.13_*.orig.tar.xz -C "$folder/source" --strip-components=1
    echo "building CPython without the GIL: some minutes"
    (cd "$folder/source" &&
        ./configure -q --disable-gil --disable-test-modules --without-ensurepip \
            --prefix="$folder/python" && make -s -j"$(nproc)" && make -s install) \
        > "$folder/python.log" 2>&1 || {
        tail -n 50 "$folder/python.log"
        exit 1
    }
fi
if [ ! -e "$folder/.packages" ]; then
    # Other packages of the tests have no wheels for it, or need the GIL.
    python -m pip install -q --upgrade --target "$folder/packages" --only-binary=:all: \
        --python-version 3.13 --implementation cp --abi cp313t \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        "setuptools>=77" "Cython>=3.3" "numpy<2.5" scipy ml_dtypes pyarrow pandas \
        pytest hypothesis
    touch "$folder/.packages"
fi
export PYTHONPATH="$folder/lib:$folder/packages"

echo "building embag without the GIL: a minute or two"
"$interpreter" setup.py -q build --build-lib "$folder/lib" --build-temp "$folder/objects" \
    > "$folder/build.log" 2>&1 || {
    cat "$folder/build.log"
    exit 1
}

if [ $# = 0 ]; then
    set -- tests/lookups tests/gradients tests/tables tests/columns tests/collection tests/stored tests/process \
        tests/fuzz
fi
# Else a package that does not declare that it needs no GIL would enable it for all tests.
PYTHON_GIL=0 EMBAG_TEST_LEVELS=best "$interpreter" -P -m pytest -p no:cacheprovider \
    -m "not packaging and not slow and not demos" "$@"
