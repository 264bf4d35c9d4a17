#!/bin/sh
# names.sh SOURCE-FOLDER: the models know the code that they stand for. Every function that an opening comment names ("stands for: FILE:
# FUNCTION...") is defined in that file, and every kind of note has a model.
cd "$1" || exit 2
failed=0 checked=0 names=$(mktemp) || exit 1
trap 'rm -f "$names"' EXIT
wrong() {
    echo "not ok $1"
    failed=1
}

for model in tests/model/*.pml; do
    sed -n 's/^ \* stands for: //p' "$model" >"$names"
    [ -s "$names" ] || wrong "$model names no function that it stands for"
    while read -r file functions; do
        file=${file%:}
        [ -f "$file" ] || { wrong "$model: there is no $file" && continue; }
        for function in $functions; do
            # A definition: at the beginning of a line, and a line that ends in no semicolon.
            grep -Eq "^[a-z].*[ *]$function\(([^;]*)$" "$file" || wrong "$model: $file does not define $function"
            checked=$((checked + 1))
        done
    done <"$names"
done

# FE_KERNEL is the barrier of kernels of the caller's, which is MEET on a GPU. What passes between hosts is not modelled.
# shellcheck disable=SC2013 # words
for kind in $(sed -n '/^typedef enum fe_kind/,/^}/s/^ *\(FE_[A-Z]*\), .*/\1/p' src/heap/cell.h | grep -vE "FE_(KERNEL|LANDED|RETURNED)$"); do
    grep -q "^ \* notes:.* $kind\( \|$\)" tests/model/*.pml || wrong "no model has notes of kind $kind"
    checked=$((checked + 1))
done
echo "$checked names checked"
[ "$checked" -gt 30 ] || wrong "the comments were not understood"
exit $failed
