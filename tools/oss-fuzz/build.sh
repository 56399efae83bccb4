#!/bin/bash -eu
# Build a program for each target, its first inputs and its options, in $OUT. NEVER RUN on
# OSS-Fuzz; see project.yaml.
cd "$SRC/embag"

# $CFLAGS has the sanitizer; EMBAG_SANITIZE adds line numbers to its reports. The machines that
# run the programs have no OpenMP runtime.
case $SANITIZER in address | undefined) export EMBAG_SANITIZE=$SANITIZER ;; esac
export EMBAG_NO_OPENMP=1
pip3 install ".[bfloat16,cli,scipy,text]"

export PYTHONPATH=tests
for target in $(python3 -c "from fuzz.from_bytes import TARGETS; print(*TARGETS)"); do
  name=fuzz_$target
  cat > "$WORK/$name.py" << END
import sys

from fuzz.from_bytes.atheris_driver import fuzz

fuzz("$target", sys.argv[0], sys.argv[1:])
END
  # PyInstaller does not see modules that are imported by name.
  compile_python_fuzzer "$WORK/$name.py" --paths tests --paths tests/support \
    --hidden-import "fuzz.from_bytes.$target" --collect-submodules embag
  zip -q -j -r "$OUT/${name}_seed_corpus.zip" "tests/fuzz/corpus/$target"
  printf '[libfuzzer]\nmax_len = 4000\ntimeout = 60\n' > "$OUT/$name.options"
done
