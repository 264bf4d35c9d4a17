# Ferry's everyday targets; CMake does the work. `make demo` is the one to begin with.
#
#   make build    libferry.so and the command, in build/
#   make demo     the same, and build/ferry demo
#   make test     everything: two compilers, sanitizers, fuzzing, 64-bit Arm under emulation, linters, an installed copy
#   make bench    build/ferry bench, in both modes; bench/README.md tells how to compare with MPI
#   make gpu      build/gpu: what tests/cuda/run runs on a machine with a GPU; needs nvcc, and can be carried there
#   make soak     linters at full depth, many drawn cases and fault plans, and long fuzzing: hours (SOAK_CASES, SOAK_FAULTS, SOAK_SECONDS)
#   make install  to PREFIX (/usr/local), below DESTDIR
#   make deps     installs the Debian packages that `make test` needs; demo and test see to theirs themselves
#   make clean

JOBS         ?= $(shell nproc)
PREFIX       ?= /usr/local
SOAK_CASES   ?= 200000
SOAK_FAULTS  ?= 1000
SOAK_SECONDS ?= 3600

BUILD_PACKAGES = gcc libc6-dev make cmake libcjson-dev libfabric-dev libhwloc-dev
TEST_PACKAGES  = $(BUILD_PACKAGES) g++ pkg-config libcmocka-dev clang libclang-rt-dev clang-tidy clang-format cppcheck spin \
                 qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross python3 mandoc iproute2 \
                 python3-venv python3-numpy python3-pytest python3-torch chromium

MAKEFLAGS += --no-print-directory

# A build folder keeps the generator that it began with.
export CMAKE_GENERATOR ?= $(if $(shell command -v ninja),Ninja,Unix Makefiles)
export JOBS

build: build-deps
	@cmake -S . -B build -DCMAKE_INSTALL_PREFIX=$(PREFIX) --log-level=WARNING
	@cmake --build build --parallel $(JOBS)

demo: build
	build/ferry demo --svg build/ferry-demo.svg

test: deps
	@tests/ci/test.sh

bench: build
	build/ferry bench --check
	build/ferry bench --check --mode latency --layout slots

gpu:
	@tests/ci/deps.sh $(BUILD_PACKAGES) libcmocka-dev
	@cmake -S . -B build/gpu -DFERRY_TESTS=ON -DFERRY_CUDA=ON -DFERRY_CARRY=ON --log-level=WARNING
	@cmake --build build/gpu --parallel $(JOBS)

soak: deps
	cmake -S . -B build -DFERRY_TESTS=ON
	cmake --build build --parallel $(JOBS)
	cmake -S . -B build/clang -DCMAKE_C_COMPILER=clang -DFERRY_TESTS=ON -DFERRY_LINT=DEEP
	cmake --build build/clang --parallel $(JOBS)
	ctest --test-dir build/clang --label-regex lint --output-on-failure
	FERRY_TEST_CASES=$(SOAK_CASES) build/tests/test_exchange
	FERRY_FAULT_RUNS=$(SOAK_FAULTS) build/tests/faults tests/faults/plans
	cmake -S . -B build/fuzz -DCMAKE_C_COMPILER=clang -DFERRY_TESTS=ON -DFERRY_FUZZ=ON
	cmake --build build/fuzz --parallel $(JOBS)
	for target in build/fuzz/tests/fuzz_*; do \
	    corpus=build/fuzz/corpus/$${target##*/fuzz_}; \
	    $$target -max_total_time=$(SOAK_SECONDS) -timeout=10 -artifact_prefix=build/fuzz/ $$corpus || exit 1; \
	done

install: build
	DESTDIR=$(DESTDIR) cmake --install build

build-deps:
	@tests/ci/deps.sh $(BUILD_PACKAGES)

deps:
	@tests/ci/deps.sh $(TEST_PACKAGES)

clean:
	rm -rf build

.PHONY: build demo test bench gpu soak install build-deps deps clean
