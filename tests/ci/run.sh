#!/bin/bash
# run.sh FERRY: what `ferry run` promises, with ranks that are small shell scripts, and a `ssh` that is one too.
set -u
ferry=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
cd "$root" || exit 1
failed=0

is() { # NAME WANTED GOT
    if [ "$2" = "$3" ]; then
        echo "ok   $1"
    else
        failed=1
        printf 'FAIL %s\n  wanted: %s\n  got:    %s\n' "$1" "$2" "$3"
    fi
}

has() { # NAME WORD FILE
    if grep -q -F -e "$2" "$3"; then
        echo "ok   $1"
    else
        failed=1
        printf 'FAIL %s: no "%s" in:\n' "$1" "$2"
        cat "$3"
    fi
}

alive() { # of the processes whose numbers are in files: how many are alive, once it is none or 5 seconds have passed
    local i n pid
    for i in $(seq 50); do
        n=0
        for pid in $(cat "$@"); do kill -0 "$pid" 2>/dev/null && n=$((n + 1)); done
        [ "$n" -eq 0 ] && break
        sleep 0.1
    done
    echo "$n"
}

await() { # FILE...: until they are all there and not empty
    local i file all
    for i in $(seq 100); do
        all=1
        for file in "$@"; do [ -s "$file" ] || all=0; done
        [ "$all" -eq 1 ] && return
        sleep 0.1
    done
    echo "no $*" && exit 1
}

# ---- what ranks are given ----

# shellcheck disable=SC2016 # the ranks expand it, in all of this file
"$ferry" run -n 3 sh -c 'echo "$FERRY_RANK $FERRY_RANKS $FERRY_LOCAL_RANK $FERRY_LOCAL_RANKS $FERRY_BOOT $FERRY_BOOT_SECRET"' >out 2>err
is "ends well" "0 " "$? $(cat err)"
is "ranks" "0 3 0 3,1 3 1 3,2 3 2 3" "$(sort out | cut -d' ' -f1-4 | paste -sd,)"
is "one place, one secret" 1 "$(cut -d' ' -f5,6 out | sort -u | wc -l)"
is "loopback" "127.0.0.1" "$(head -n 1 out | cut -d' ' -f5 | cut -d: -f1)"
is "secret of 128 bits" 32 "$(head -n 1 out | cut -d' ' -f6 | tr -d '\n' | wc -c)"
first=$(head -n 1 out | cut -d' ' -f6)
"$ferry" run -n 1 -- sh -c 'echo $FERRY_BOOT_SECRET' >out
is "another secret for another job" different "$([ "$(cat out)" = "$first" ] && echo the same || echo different)"
is "no standard input" "rank 0" "$(echo secret | "$ferry" run -n 1 sh -c 'read x; echo "rank 0$x"')"

# ---- output ----

"$ferry" run -n 4 --output prefix sh -c 'for i in $(seq 200); do printf "abc"; printf "def %d\n" $i; done; printf end' >out
is "lines stay whole" 800 "$(grep -c -E '^[0-3]\| abcdef [0-9]+$' out)"
is "a last line without an end" 4 "$(grep -c -E '^[0-3]\| end$' out)"
is "plain output is as it was" "a b" "$("$ferry" run -n 1 -- printf 'a b')"
is "errors go to errors" "x" "$("$ferry" run -n 1 -- sh -c 'echo x >&2; echo y' 2>&1 >/dev/null)"
is "a long line" 300000 "$("$ferry" run -n 1 -- head -c 300000 /dev/zero | tr -d '\n' | wc -c)"
is "nobody reads" "0" "$(timeout 20 "$ferry" run -n 2 -- yes | head -n 1 >/dev/null; [ "${PIPESTATUS[0]}" -eq 124 ] && echo hangs || echo 0)"

# ---- a rank that fails ----

"$ferry" run -n 3 -- sh -c 'if [ "$FERRY_RANK" = 1 ]; then sleep 0.3; exit 7; fi; echo $$ >pid$FERRY_RANK; sleep 60' 2>err
is "exit status of the first that fails" 7 $?
has "which" "rank 1 ended with exit status 7; the others are told to end" err
is "the others are ended" 0 "$(alive pid0 pid2)"

rm -f pid* child*
"$ferry" run -n 2 --grace 1 -- sh -c 'if [ "$FERRY_RANK" = 1 ]; then kill -9 $$; fi; trap "" TERM; sleep 60 & echo $! >child; echo $$ >pid0; wait; sleep 60' 2>err
is "128 + signal" 137 $?
has "which signal" "rank 1 was killed by signal 9 (Killed)" err
is "one that ignores SIGTERM, with its child" 0 "$(alive pid0 child)"

rm -f pid* child*
"$ferry" run -n 1 -- sh -c 'setsid sleep 60 & echo $! >child; exit 0'
is "a child with a session of its own: ends well" 0 $?
is "a child with a session of its own: is ended" 0 "$(alive child)"

"$ferry" run -n 2 -- ./not-there 2>err
is "no such command" 127 $?
has "no such command, in words" "./not-there could not be run: No such file or directory" err
"$ferry" run -n 2 --timeout 1 --grace 1 -- sleep 60 2>err
is "timeout" 124 $?
has "timeout, in words" "1 s passed, and still running: rank 0 rank 1" err

# ---- signals ----

rm -f pid*
"$ferry" run -n 2 --grace 3 -- sh -c 'trap "echo term \$FERRY_RANK; exit 3" TERM; trap "echo usr1 \$FERRY_RANK" USR1; echo $$ >pid$FERRY_RANK; while :; do sleep 0.1; done' >out 2>err &
run=$!
await pid0 pid1
kill -USR1 $run
sleep 0.5
kill -TERM $run
wait $run
is "128 + the signal it got" 143 $?
is "signals are passed on" "term 0,term 1,usr1 0,usr1 1" "$(sort out | paste -sd,)"
has "says so" "signal 15 (Terminated); passed on to the ranks" err

# ---- nobody is left behind ----

for victim in launcher supervisor; do
    rm -f pid* child*
    "$ferry" run -n 2 --grace 1 -- sh -c 'trap "" TERM; sleep 60 & echo $! >child$FERRY_RANK; setsid sleep 61 & echo $! >childs$FERRY_RANK; echo $$ >pid$FERRY_RANK; wait; wait; sleep 60' 2>err &
    run=$!
    await pid0 pid1 child0 child1 childs0 childs1
    supervisor=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$(cat pid0)/status")
    if [ $victim = launcher ]; then kill -9 $run; else kill -9 "$supervisor"; fi
    wait $run
    is "kill -9 of the $victim: status" 137 $?
    echo "$supervisor" >childx
    is "kill -9 of the $victim: all are ended" 0 "$(alive pid* child*)"
done

# ---- other hosts: a ssh that runs the command here, as sshd would: by the user's shell, with one string ----

mkdir bin 'a folder'
cat >bin/ssh <<'SSH'
#!/bin/bash
printf '%s\n' "$@" >>"$SSH_LOG"
echo ---- >>"$SSH_LOG"
[ "$1 $2 $3 $4" = "-T -o BatchMode=yes --" ] || exit 255
[ "$5" = records ] && { printf '%s\n' "$6" >"$SSH_LOG.words"; cat >"$SSH_LOG.input"; exit 0; }
[ "$5" = refuses ] && { echo "ssh: connect to host refuses: no" >&2; exit 255; }
host=$5
shift 5
exec 4<&0
cd /
env -i PATH="$PATH" HOME="$HOME" HOST="$host" SSH_LOG="$SSH_LOG" "${LOGIN_SHELL:-/bin/sh}" -c "$*" <&4 4<&- &
trap 'exit 1' TERM
wait $!
SSH
chmod +x bin/ssh
export PATH="$root/bin:$PATH" SSH_LOG="$root/log"
printf '# a comment\n127.0.0.2 slots=2\n\n127.0.0.3   # one\nlocalhost slots=1\n' >hosts

export FERRY_TIMEOUT_MS=12345 WITH_ENV="it's \"quoted\" \$HOME
and two lines" WITHOUT=1
cd 'a folder' || exit 1
"$ferry" run --hosts ../hosts --env WITH_ENV sh -c 'printf "%s|" "$FERRY_RANK" "$FERRY_RANKS" "$FERRY_LOCAL_RANK" "$FERRY_LOCAL_RANKS" "$HOST" "$FERRY_TIMEOUT_MS" "$WITH_ENV" "$PWD" "$@" | tr "\n" "/"; echo' sh "it's" '' 'two
lines' '$(echo no) `echo no` \n "*" ; # !!' >../out 2>../err
is "hosts: ends well" "0 " "$? $(cat ../err)"
cd ..
# shellcheck disable=SC2016
rest="|12345|it's \"quoted\" \$HOME/and two lines|$root/a folder|it's||two/lines|"'$(echo no) `echo no` \n "*" ; # !!|'
is "hosts: everything arrives as it was said" \
    "0|4|0|2|127.0.0.2$rest,1|4|1|2|127.0.0.2$rest,2|4|0|1|127.0.0.3$rest,3|4|0|1|$rest" "$(sort out | paste -sd,)"
is "hosts: the command line of ssh is always the same" "3 1" "$(grep -c '^exec ' log) $(grep '^exec ' log | sort -u | wc -l)"
is "hosts: no secret and no command is on it" 0 "$(grep -c -e quoted -e FERRY_ log)"
unset WITH_ENV WITHOUT
for shell in bash dash; do # the login shell is the user's choice
    is "hosts: by $shell" "0 1 2 3" "$(LOGIN_SHELL=$(command -v $shell) "$ferry" run --hosts hosts -- sh -c 'echo $FERRY_RANK' | sort | paste -sd' ')"
done
is "hosts: -n of them" "0 1 2" "$("$ferry" run -n 3 --hosts hosts -- sh -c 'echo $FERRY_RANK' | sort | paste -sd' ')"
is "hosts: rank 0's is the place" "127.0.0.2" "$("$ferry" run -n 1 --hosts hosts -- sh -c 'echo $FERRY_BOOT' | cut -d: -f1)"

rm -f pid* child*
"$ferry" run --hosts hosts --grace 1 -- sh -c "cd $root; "'if [ "$FERRY_RANK" = 1 ]; then sleep 1; exit 9; fi; trap "" TERM; sleep 60 & echo $! >child$FERRY_RANK; echo $$ >pid$FERRY_RANK; wait; sleep 60' 2>err
is "hosts: exit status" 9 $?
has "hosts: which" "rank 1 on 127.0.0.2 ended with exit status 9" err
is "hosts: the others are ended" 0 "$(alive pid* child*)"

rm -f pid* child* out
"$ferry" run --hosts hosts --grace 3 -- sh -c "cd $root; "'trap "echo \$FERRY_RANK >>out; exit 0" TERM; echo $$ >pid$FERRY_RANK; while :; do sleep 0.1; done' 2>err &
run=$!
await pid0 pid1 pid2 pid3
kill -TERM $run
wait $run
is "hosts: signals arrive" "143 0 1 2 3" "$? $(sort out | paste -sd' ')"

rm -f pid* child*
"$ferry" run --hosts hosts --grace 1 -- sh -c "cd $root; "'trap "" TERM; sleep 60 & echo $! >child$FERRY_RANK; echo $$ >pid$FERRY_RANK; wait; sleep 60' 2>err &
run=$!
await pid0 pid1 pid2 pid3 child0 child1 child2 child3
kill -9 $run
wait $run
is "hosts: kill -9 of the launcher: all are ended" 0 "$(alive pid* child*)"

# The same without the launcher, who would find a process of this machine by himself: what the host's shell was told, and then the end of it.
rm -f pid* child*
printf 'records\n' >hosts2
"$ferry" run --hosts hosts2 --grace 1 -- sh -c "cd $root; "'trap "" TERM; sleep 60 & echo $! >child; echo $$ >pid; wait; sleep 60' &
run=$!
await log.input
cp log.input script
kill -9 $run
wait $run
{ cat script; sleep 2; } | sh -c "$(cat log.words)" &
await pid child
is "hosts: the connection ends: lives before" 2 "$(for p in $(cat pid child); do kill -0 "$p" && echo 1; done | wc -l)"
is "hosts: the connection ends: all are ended" 0 "$(alive pid child)"

printf 'refuses\n' >hosts2
"$ferry" run --hosts hosts2 true 2>err
is "hosts: no connection" 255 $?
has "hosts: no connection, in words" "rank 0 on refuses: ssh ended with exit status 255" err

# ---- what is refused ----

refuse() { # NAME WORD ARGUMENTS...
    local name=$1 word=$2
    shift 2
    "$ferry" run "$@" >out 2>err
    is "$name: status" 2 $?
    has "$name: why" "$word" err
}
printf 'a slots=0\n' >bad1
printf 'a b\n' >bad2
printf -- '-oProxyCommand=x\n' >bad3
printf '# nothing\n' >bad4
refuse "no command" "no command to run" -n 2
refuse "no ranks" "say how many ranks" true
refuse "no slots" "bad1, line 1: \"a slots=0\"" --hosts bad1 true
refuse "no word of ours" "bad2, line 1" --hosts bad2 true
refuse "an option for ssh" "bad3, line 1" --hosts bad3 true
refuse "no hosts" "bad4 names no host" --hosts bad4 true
refuse "no file" "not-there: No such file" --hosts not-there true
refuse "more ranks than slots" "5 ranks, but hosts has 4 slots" -n 5 --hosts hosts true
refuse "a wrong number" "-n x is not a whole number" -n x true
refuse "no place" "--boot nowhere is no HOST:PORT" -n 1 --boot nowhere true
exit $failed
