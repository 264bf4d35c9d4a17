#!/bin/sh
# run.sh MODEL.pml: checks a model with SPIN. Its opening comment says how:
#
#   good: DEFINES                     nothing may go wrong, and every statement must be reached
#   broken: assertion DEFINES         with this mistake in it, the checker must find an assertion that does not hold
#   broken: deadlock DEFINES          the same, and ranks that wait for ever
#
# Says how many states each had. Exit status 1 when anything is not as it should be.
#
#   MODEL_MB, MODEL_SECONDS           limits of each search (1000, 60)
model=$(realpath "$1")
[ -f "$model" ] || { echo "run.sh: no model \"$1\"" && exit 2; }
name=$(basename "$model" .pml) folder=$(dirname "$model")
command -v spin >/dev/null || { echo "SKIP model $name: no spin on this machine" && exit 0; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0

is() { # TRUTH TEXT
    [ "$1" -eq 0 ] && echo "ok $2" && return
    echo "not ok $2"
    failed=1
    sed 's/^/# /' said
}

search() { # OPTIMIZATION DEFINES...: all states, or the first mistake; `said` has what was found
    level=$1
    shift
    spin -o3 -a "$@" "$model" >said 2>&1 && # -o3: statements that are merged count as reached
        "${CC:-cc}" -w "$level" -DSAFETY -DNOFAIR -DMEMLIM="${MODEL_MB:-1000}" -o pan pan.c >said 2>&1 &&
        timeout "${MODEL_SECONDS:-60}" ./pan -m100000 >said 2>&1
}

states() {
    sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' said
}

good() { # DEFINES...
    search -O2 "$@"
    grep -q 'errors: 0$' said && ! grep -q -e 'Search not completed' -e 'max search depth too small' said &&
        ! grep 'state [0-9]*, "' said | grep -qv '"-end-"' # statements that were not reached
    is $? "$name $*: $(states) states, $(sed -n 's/^pan: elapsed time \(.*\) seconds/\1/p' said) s"
}

broken() { # assertion|deadlock DEFINES...
    kind=$1
    shift
    search -O0 "$@"
    case $kind in
    assertion) grep -q '^pan:.*assertion violated' said ;;
    deadlock) grep -q '^pan:.*invalid end state' said ;;
    *) false ;;
    esac
    is $? "$name $*: $kind found, after $(states) states"
}

# The words of the plan, without its comments.
sed -n 's/^ \* \(good\|broken\):\( assertion\| deadlock\|\)\(\( *-D[^ ]*\)*\).*/\1\2\3/p' "$model" >plan
: >said
grep -q '^good' plan && grep -q '^broken' plan
is $? "$name says what is good and what is broken"
# shellcheck disable=SC2086 # words
while read -r what rest; do
    case $what in
    good) good $rest ;;
    broken) broken $rest ;;
    esac
done <plan

# A mistake that the plan does not make is one that nobody looks for.
: >said
files=$model
grep -q '"note.pml"' "$model" && files="$files $folder/note.pml"
# shellcheck disable=SC2086,SC2013 # words
for mistake in $(grep -h '^#.*BREAK_' $files | grep -o 'BREAK_[A-Z_]*' | sort -u); do
    grep -q "^broken.*$mistake\( \|$\)" plan || is 1 "$name makes $mistake"
done
exit $failed
