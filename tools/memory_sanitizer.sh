#!/bin/sh
# Compile embag with clang's MemorySanitizer and make calls: one that reads memory that was not
# written ends with a report. Everything is in build/memory.
#
# It runs on Debian and Ubuntu. CPython and NumPy are not compiled; tests/support/poisoned_memory.c
# says what is checked nevertheless. `python` is the Python of the project, with setuptools and
# Cython, and needs a shared libpython.
set -eu
cd "$(dirname "$0")/.."
. tools/debian.sh
folder=$PWD/build/memory
mkdir -p "$folder/files"

command -v clang > /dev/null || install_tools clang

# Arguments of functions are checked where they are passed, since functions that are not compiled
# pass some without their state. Local variables count as written, since such functions write to
# them. One level is enough: setup.py leaves out those whose flags this command refuses.
cat > "$folder/cc" << 'EOF'
#!/bin/sh
case "$*" in *-march=*) exit 1 ;; esac
exec clang -Qunused-arguments "$@" -fsanitize-memory-track-origins \
    -fsanitize-memory-param-retval -mllvm -msan-poison-stack=0
EOF
chmod +x "$folder/cc"
echo "building embag with MemorySanitizer: some minutes"
CC=$folder/cc LDSHARED="$folder/cc -shared" EMBAG_NO_OPENMP=1 EMBAG_SANITIZE=memory \
    CFLAGS="-Dmalloc=embag_malloc -Dfree=embag_free \
        -DPyMem_RawMalloc=embag_malloc -DPyMem_RawFree=embag_free" \
    python setup.py -q build --build-lib "$folder/lib" --build-temp "$folder/objects" \
    > "$folder/build.log" 2>&1 || {
    cat "$folder/build.log"
    exit 1
}

libraries=$(python -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
version=$(python -c 'import sysconfig; print(sysconfig.get_config_var("LDVERSION"))')
"$folder/cc" -fsanitize=memory -fno-omit-frame-pointer -g1 -rdynamic \
    tests/support/poisoned_memory.c -o "$folder/python" \
    -L"$libraries" -Wl,-rpath,"$libraries" "-lpython$version"

packages=$(python -c 'import numpy; print(numpy.__path__[0].removesuffix("/numpy"))')
home=$(python -c 'import sys; print(sys.base_prefix)')
# What Python and NumPy pass to functions of the C library counts as written.
options=poison_in_malloc=0:poison_in_free=0:strict_memcmp=0
options=$options:intercept_memcmp=0:intercept_strlen=0:intercept_strchr=0
PYTHONHOME=$home PYTHONPATH=$folder/lib:$packages EMBAG_ISA=baseline MSAN_OPTIONS=$options \
    "$folder/python" -P tests/scripts/poison_memory.py "$folder/files"
