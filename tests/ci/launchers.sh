#!/bin/bash
# launchers.sh SOURCE BUILD: the command and the MPI and OpenSHMEM examples under real launchers, and under the variables that launchers
# which are not here would set. A launcher that is not installed is named in a line that begins with SKIP.
set -u
source=$1 build=$2
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
failed=0
export FERRY_TIMEOUT_MS=20000
# What this test may have been started by says nothing to the ranks below.
for name in $(env | sed -n 's/^\(\(OMPI\|PMI\|PMIX\|SLURM\|MPI\|TORCHELASTIC\)_[A-Z_]*\|RANK\|WORLD_SIZE\|MASTER_ADDR\|MASTER_PORT\|FERRY_RANKS*\)=.*/\1/p'); do unset "$name"; done

passes() { # NAME PATTERN COMMAND...: the command ends with 0, and exactly one of its lines has the pattern
    local name=$1 pattern=$2
    shift 2
    if timeout 60 "$@" >"$root/out" 2>&1 && [ "$(grep -c -E -e "$pattern" "$root/out")" -eq 1 ]; then
        echo "ok   $name"
    else
        failed=1
        echo "FAIL $name (wanted: one line with $pattern)"
        cat "$root/out"
    fi
}

skip() { echo "SKIP $*"; }

bench=("$build/ferry" bench --check --tokens 64 --hidden 256 --experts 8 --topk 2 --iters 3 --warmup 1)
title='^4 ranks as launched processes'

each_rank() { # COMMAND...: 4 ranks in the background, each by `of RANK COMMAND`, which sets what the launcher would
    local rank status=0 pids=()
    for rank in 3 1 2 0; do
        (of "$rank" "$@") &
        pids+=($!)
    done
    for rank in "${pids[@]}"; do wait "$rank" || status=1; done
    return $status
}

port=$((12000 + $$ % 19000))
export bench build port
export -f each_rank

# ---- variables alone: processes as the launcher would start them ----

of_torch() { env RANK="$1" WORLD_SIZE=4 LOCAL_RANK="$1" MASTER_ADDR=localhost MASTER_PORT=$port "${@:2}"; }
of_slurm() { env SLURM_JOB_ID=$$ SLURM_STEP_ID=0 SLURM_PROCID="$1" SLURM_NTASKS=4 SLURM_LOCALID="$1" SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=somewhere "${@:2}"; }
of_two_hosts() { env SLURM_JOB_ID=$$ SLURM_STEP_ID=1 SLURM_PROCID="$1" SLURM_NTASKS=4 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST="localhost,other[3-4]" "${@:2}"; }
of_own_name() { env SLURM_JOB_ID=$$ SLURM_STEP_ID=2 SLURM_PROCID="$1" SLURM_NTASKS=4 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST="$(hostname),other" "${@:2}"; }
of_pmix() { env SLURM_JOB_ID=$$ SLURM_STEP_ID=3 PMIX_NAMESPACE=$$.3 PMIX_RANK="$1" SLURM_PROCID="$1" SLURM_NTASKS=4 SLURM_STEP_NUM_NODES=1 "${@:2}"; }
of_kubernetes() { env FERRY_RANK="$1" FERRY_RANKS=4 FERRY_BOOT="$(hostname):$((port + 7))" FERRY_BOOT_SECRET=a-secret "${@:2}"; }
export -f of_torch of_slurm of_two_hosts of_own_name of_pmix of_kubernetes
for by in torch slurm two_hosts own_name pmix kubernetes; do
    # shellcheck disable=SC2016 # bash expands it
    passes "variables: $by" "$title" bash -c 'of() { of_'$by' "$@"; }; each_rank "$@"' bash "${bench[@]}"
done
# The script of a Slurm job has a rank too, but nobody else has.
passes "variables: the script of a Slurm job" '^2 ranks as processes' env SLURM_JOB_ID=1 SLURM_PROCID=0 SLURM_NTASKS=4 "${bench[@]}"

# ---- launchers ----

passes "ferry run" "$title" "$build/ferry" run -n 4 "${bench[@]}"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
if command -v mpirun.openmpi >/dev/null; then
    passes "Open MPI" "$title" mpirun.openmpi --oversubscribe -n 4 "${bench[@]}"
else
    skip "Open MPI's mpirun: not installed"
fi
if command -v mpirun.mpich >/dev/null; then
    passes "MPICH" "$title" mpirun.mpich -n 4 "${bench[@]}"
else
    skip "MPICH's mpirun: not installed"
fi
if ! command -v torchrun >/dev/null; then
    skip "torchrun: not installed (its variables were tried above)"
elif ! torchrun --no_python --nproc_per_node 1 true >/dev/null 2>&1; then
    skip "torchrun: cannot start even 'true' here, as Debian 12's 1.13 under Python 3.11 cannot (its variables were tried above)"
else
    passes "torchrun" "$title" torchrun --no_python --nproc_per_node 4 --master_addr localhost --master_port $((port + 9)) "${bench[@]}"
fi
if command -v srun >/dev/null && srun -n 1 true 2>/dev/null; then
    passes "srun" "$title" srun -n 4 --overcommit "${bench[@]}"
else
    skip "srun: no Slurm here (its variables were tried above)"
fi

# ---- examples ----

compile() { # COMPILER NAME
    "$1" -std=c11 -Wall -Wextra -Wpedantic -Wshadow -Werror "$source/examples/$2.c" -o "$root/$2.$1" -I "$source/include" -L "$build" -lferry \
        -Wl,-rpath,"$build" || { failed=1 && echo "FAIL $1 $2.c"; }
}

for mpi in openmpi mpich; do
    if command -v mpicc.$mpi >/dev/null && command -v mpirun.$mpi >/dev/null; then
        compile mpicc.$mpi mpi
        oversubscribe=$([ $mpi = openmpi ] && echo --oversubscribe)
        for ranks in 1 2 4; do # step 4 is the last of them
            passes "examples/mpi.c, $mpi, $ranks" "^step 4: $((ranks * 32)) rows carried among $ranks ranks, 0 tokens wrong$" \
                mpirun.$mpi ${oversubscribe:+"$oversubscribe"} -n $ranks "$root/mpi.mpicc.$mpi"
        done
    else
        skip "examples/mpi.c with $mpi: mpicc.$mpi or mpirun.$mpi is not installed"
    fi
done
if command -v oshcc >/dev/null && command -v oshrun >/dev/null; then
    compile oshcc openshmem
    for ranks in 1 2 4; do
        passes "examples/openshmem.c, $ranks" "^8 rounds among $ranks ranks: both heaps are right$" \
            oshrun --oversubscribe --mca memory ^patcher -n $ranks "$root/openshmem.oshcc"
    done
else
    skip "examples/openshmem.c: oshcc or oshrun is not installed"
fi
exit $failed
