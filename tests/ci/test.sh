#!/bin/sh
# Everything that can be tested on this machine, each kind in a build of its own. Ends with one line, "N passed, N failed": every
# CTest test of every build, every build itself, every CUDA file and architecture, and every test of the Python package is one. What
# cannot run has failed; what does not apply is named in a line that begins with SKIP. Exit status 1 when anything failed.
#
#   FERRY_TEST_CASES=n   drawn cases of the rank tests in the first build (the others have fewer)
cd "$(dirname "$0")/../.." || exit 1
jobs=${JOBS:-2}
passed=0 failed=0 broken='' beside=''
log=$(mktemp)
trap 'rm -f "$log" "$log".*' EXIT

count() { # NAME STATUS: one more that passed or failed
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1)) broken="$broken
  $1"
    fi
}

step() { # NAME COMMAND...: prints the end of what the command says, when it fails
    name=$1
    shift
    "$@" >"$log" 2>&1
    status=$?
    [ "$status" -eq 0 ] || tail -n 80 "$log"
    count "$name" "$status"
    return "$status"
}

compile() { # FOLDER CMAKE-OPTION...
    folder=$1
    shift
    cmake -S . -B "$folder" -DFERRY_TESTS=ON -DFERRY_WERROR=ON "$@" &&
        cmake --build "$folder" --parallel "$jobs"
}

clang="build/clang -DCMAKE_C_COMPILER=clang -DFERRY_LINT=ON -DCMAKE_CUDA_ARCHITECTURES=90-virtual"
asan="build/asan -DCMAKE_C_COMPILER=clang -DFERRY_SANITIZE=address,undefined"
fuzz="build/fuzz -DCMAKE_C_COMPILER=clang -DFERRY_FUZZ=ON"
tsan="build/tsan -DCMAKE_C_COMPILER=clang -DFERRY_SANITIZE=thread"

# Tests of several ranks wait for deadlines most of their time, and want the machine for themselves meanwhile; but not what they leave of
# the cores. There, at the lowest priority, the other builds are made, and what needs no build of several ranks is done: linters, models, kernels.
# What goes wrong with a build is told when its turn comes; what the rest says, and how it counts, when all is over.
aside() {
    renice -n 19 -p "$(exec sh -c 'echo $PPID')" >/dev/null # of this shell, and so of all that it starts
    for options in "$asan" "$tsan" "$clang" "$fuzz"; do
        # shellcheck disable=SC2086 # words, not one
        compile $options >"$log.build" 2>&1
    done
    : >"$log.built"
    marks=$log log=$log.aside passed=0 failed=0 broken=
    printf '\n==== lint\n'
    ctests lint build/clang --label-regex lint
    : >"$marks.linted"
    wheels
    : >"$marks.wheels"
    models
    cuda
    # shellcheck disable=SC2086
    tests fuzz $fuzz
    export FERRY_TEST_CASES=40
    tests arm build/arm -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake -DFERRY_COMMAND=OFF
    echo "$passed $failed" >"$log.count"
    printf '%s' "$broken" >"$log.broken"
}

collect() { # what aside has said and counted
    wait
    cat "$log.all"
    read -r good bad <"$log.aside.count" || { count "what is done beside" 1 && return; }
    passed=$((passed + good)) failed=$((failed + bad))
    broken="$broken$(cat "$log.aside.broken")"
}

ctests() { # NAME FOLDER CTEST-ARGUMENT...
    suite=$1 folder=$2
    shift 2
    begun=$(date +%s)
    $run ctest --test-dir "$folder" --parallel "$jobs" --no-tests=error --output-on-failure "$@" 2>&1 | tee "$log"
    # Skipped parts of tests pass for CTest. They are named here: cmocka's by the test that skipped, scripts' by their own words.
    sed -n 's/^\[ *SKIPPED *\] \([a-z_0-9]*\)$/SKIP '"$suite"': \1/p' "$folder/Testing/Temporary/LastTest.log" | sort -u
    sed -n 's/^SKIP \(.*\)/SKIP '"$suite"': \1/p' "$folder/Testing/Temporary/LastTest.log"
    bad=$(sed -n 's/.*tests passed, \([0-9]*\) tests\{0,1\} failed out of [0-9]*.*/\1/p' "$log")
    all=$(sed -n 's/.*tests passed, [0-9]* tests\{0,1\} failed out of \([0-9]*\).*/\1/p' "$log")
    if [ -n "$all" ]; then
        passed=$((passed + all - bad)) failed=$((failed + bad))
        [ "$bad" -eq 0 ] || broken="$broken
$(sed -n "s/^\t *[0-9]* - \([^ ]*\) (.*/  $suite: \1/p" "$log")"
    else
        count "$suite: ctest" 1
    fi
    echo "$suite tested in $(($(date +%s) - begun)) s"
}

tests() { # NAME FOLDER CMAKE-OPTION...: a build and its tests
    suite=$1 folder=$2
    shift 2
    printf '\n==== %s\n' "$suite"
    begun=$(date +%s)
    step "$suite: build" compile "$folder" "$@" || return
    echo "built in $(($(date +%s) - begun)) s"
    if [ "$suite" = gcc ]; then
        aside >"$log.all" 2>&1 &
        beside=$!
    fi
    ctests "$suite" "$folder" --label-exclude lint
}

await() { # MARK: two makes, or two ctests, in one folder would not do
    while [ ! -e "$log.$1" ] && [ "$beside" ] && kill -0 "$beside" 2>/dev/null; do sleep 1; done
}

models() {
    printf '\n==== models\n'
    step tests/model/names.sh tests/model/names.sh .
    for model in tests/model/[!n]*.pml; do # note.pml is what the others include
        step "$model" tests/model/run.sh "$model" && cat "$log"
    done
}

no_spills() { # COMMAND...: compiles, says what each kernel takes, and fails when one keeps registers in memory
    "$@" >"$log.ptxas" 2>&1
    status=$?
    sed -n "s/.*Compiling entry function '_ZN5ferry[0-9]*\([a-z_]*\)[^']*' for '\(.*\)'/\2 \1/p; s/.*Used \([0-9]* registers\).*/    \1/p" "$log.ptxas"
    grep -E "error|[1-9][0-9]* bytes spill" "$log.ptxas" && status=1
    rm -f "$log.ptxas"
    return "$status"
}

cuda() { # every kernel file for every architecture; nothing of it is run
    printf '\n==== cuda\n'
    nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc) || { echo "SKIP cuda: no nvcc on this machine" && return; }
    mkdir -p build/cuda
    for file in src/cuda/*.cu examples/*.cu tests/cuda/*.cu; do
        step "nvcc $file" no_spills "$nvcc" -std=c++17 -O3 -fmad=false --threads "$jobs" -Werror all-warnings -Xptxas -v \
            -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_100,code=sm_100 \
            -I src -I include -I tests -c "$file" -o "build/cuda/$(basename "$file").o" && echo "$file" && cat "$log"
    done
    step "nvcc bench/link.cu" "$nvcc" -O3 -arch=sm_90 -Werror all-warnings -c bench/link.cu -o build/cuda/link.o
}

peers() { # the MPI programs that benchmarks compare with still compile, and their results are right
    printf '\n==== peers\n'
    command -v mpicc.openmpi mpicc.mpich >/dev/null || { echo "SKIP peers: no Open MPI or MPICH on this machine" && return; }
    step "bench/compare.py" python3 bench/compare.py --ferry build/gcc/ferry --results build/peers --tokens 64 --hidden 256 \
        --rounds 1 --iters 2 --check && echo "bench/compare.py: every program checked"
}

venv=build/python/venv

python_package() { # the wheel, as its users get it, beside Debian's NumPy and PyTorch; every test of pytest's is one
    rm -rf build/python
    /usr/bin/python3 -m venv --system-site-packages "$venv" &&
        CMAKE_BUILD_PARALLEL_LEVEL=$jobs CMAKE_ARGS="-DFERRY_CUDA=OFF -DFERRY_WERROR=ON" \
            "$venv/bin/pip" wheel --no-deps -w build/python ./python &&
        "$venv/bin/pip" install 'numpy<2' 'ml_dtypes<0.5' build/python/*.whl # Debian's PyTorch is of NumPy 1
}

python_sdist() { # what an sdist brings is enough for the same wheel
    "$venv/bin/pip" install build && "$venv/bin/python" -m build --sdist -o build/python/sdist python &&
        CMAKE_BUILD_PARALLEL_LEVEL=$jobs CMAKE_ARGS="-DFERRY_CUDA=OFF" \
            "$venv/bin/pip" wheel --no-deps -w build/python/sdist build/python/sdist/*.tar.gz || return 1
    for wheel in build/python/*.whl build/python/sdist/*.whl; do
        "$venv/bin/python" -m zipfile -l "$wheel" | awk 'NR > 1 { print $1 }' | sort >"$wheel.names"
    done
    diff build/python/*.names build/python/sdist/*.names
}

wheels() {
    printf '\n==== wheels\n'
    step "python: wheel" python_package && step "python: sdist" python_sdist
}

python() { # from another folder: what is tested is what was installed
    printf '\n==== python\n'
    begun=$(date +%s)
    (cd python/tests && env -u FERRY_LIBRARY PYTHONDONTWRITEBYTECODE=1 "../../$venv/bin/python" -m pytest \
        -p no:cacheprovider --durations=3 . 2>&1) | tee "$log"
    sed -n 's/^SKIPPED \[[0-9]*\] /SKIP python: /p' "$log"
    good=$(tail -n 1 "$log" | grep -Eo '[0-9]+ passed' | cut -d ' ' -f 1)
    bad=$(tail -n 1 "$log" | grep -Eo '[0-9]+ (failed|error)' | awk '{ n += $1 } END { print n + 0 }')
    passed=$((passed + ${good:-0})) failed=$((failed + bad))
    [ "$bad" -eq 0 ] || broken="$broken
$(sed -n 's/^\(FAILED\|ERROR\) \([^ ]*\).*/  python: \2/p' "$log")"
    [ -n "$good" ] || count "python: pytest" 1
    echo "python took $(($(date +%s) - begun)) s"
}

run=''
# In a folder of its own, with one GPU architecture: `cuda` compiles the kernels for all.
tests gcc build/gcc -DCMAKE_CUDA_ARCHITECTURES=90-real
await built
export FERRY_TEST_CASES=150
# shellcheck disable=SC2086 # words, not one
tests asan $asan
# Without -R the kernel may put things where this clang's thread sanitizer wants its shadow.
setarch -R true 2>/dev/null && run="setarch -R"
# shellcheck disable=SC2086
tests tsan $tsan
run=''
await linted
export FERRY_TEST_CASES=200
# shellcheck disable=SC2086
tests clang $clang
peers
await wheels
python
collect

printf '\n'
[ -z "$broken" ] || printf 'failed:%s\n' "$broken"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
