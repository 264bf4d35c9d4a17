#!/bin/sh
# install.sh SOURCE BUILD: installs a finished build into a fresh folder and uses it from there, as a stranger would.
set -eu
source=$1 build=$2
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
prefix=$root/prefix

cmake --install "$build" --prefix "$prefix" >"$root/log" || { cat "$root/log" && exit 1; }
library=$(find "$prefix" -name libferry.so)
libraries=$(dirname "$library")

echo "exports: what the header declares, and nothing else"
sed -n 's/^FERRY_API .*[ *]\(ferry_[a-z0-9_]*\)(.*/\1/p' "$prefix/include/ferry/ferry.h" | sort >"$root/declared"
nm -D --defined-only "$library" | awk '{ print $3 }' | sort >"$root/exported"
[ -s "$root/declared" ]
diff "$root/declared" "$root/exported"

echo "needs: the C library alone"
readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | tee "$root/needed"
if grep -v -E '^(libc|libm|libpthread|ld-linux.*)\.so' "$root/needed"; then exit 1; fi

echo "manual: a page for every function, for the command and for the environment"
missing=0
for page in $(sed 's|.*|man3/&.3|' "$root/declared") man1/ferry.1 man7/ferry-env.7; do
    [ -f "$prefix/share/man/$page" ] || { echo "no $page" && missing=1; }
done
# shellcheck disable=SC2013 # words are wanted
for target in $(grep -h -r '^\.so ' "$prefix/share/man" | sed 's/^\.so //' | sort -u); do
    [ -f "$prefix/share/man/$target" ] || { echo "no $target, where a link leads" && missing=1; }
done
[ "$missing" -eq 0 ]

echo "command"
"$prefix/bin/ferry" --version

export PKG_CONFIG_PATH="$libraries/pkgconfig" LD_LIBRARY_PATH="$libraries"
strict="-Wall -Wextra -Wpedantic -Werror"
for compiler in "gcc -std=c11" "g++ -std=c++17 -x c++"; do
    echo "pkg-config: $compiler"
    # shellcheck disable=SC2046,SC2086 # lists of options
    $compiler $strict $(pkg-config --cflags ferry) "$source/tests/ci/consumer/consumer.c" -o "$root/consumer" $(pkg-config --libs ferry)
    "$root/consumer"
done

echo "find_package"
cmake -S "$source/tests/ci/consumer" -B "$root/cmake" -DCMAKE_PREFIX_PATH="$prefix" >"$root/log" || { cat "$root/log" && exit 1; }
cmake --build "$root/cmake" >"$root/log" || { cat "$root/log" && exit 1; }
"$root/cmake/consumer"
