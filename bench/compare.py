#!/usr/bin/env python3
"""Runs `ferry bench` and its peers (MPI_Alltoallv, MPI_Win_allocate_shared) side by side, by turns, several rounds, and writes
bench/results/<date>-<name>.json and .md. Needs only Python's standard library, and mpicc/mpirun of Open MPI or MPICH."""

import argparse
import datetime
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
STEPS = ("dispatch", "combine")
# MPI's ranks spin without yielding. Two of them on one core wait for each other by whole scheduler slices (4 ms each way), and even
# the exchange of counts, which takes microseconds, then takes milliseconds: such a round measured the scheduler.
STALL_US = 2000


def binding(o):
    """One core per MPI rank, so that no two share one; where ranks outnumber cores there is nothing to bind to."""
    return "core" if o.ranks <= len(os.sched_getaffinity(0)) else "none"


def options():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--ferry", default=os.path.join(ROOT, "build", "ferry"), help="the command ferry")
    p.add_argument("--name", default="mpi", help="names the result files")
    p.add_argument("--results", default=os.path.join(HERE, "results"), help="where they go")
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--tokens", type=int, default=4096)
    p.add_argument("--hidden", type=int, default=7168)
    p.add_argument("--topk", type=int, default=8)
    p.add_argument("--experts", type=int, default=256)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--skew", type=float, default=0)
    p.add_argument("--iters", type=int, default=30, help="timed steps of a round")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--check", action="store_true", help="every program checks its results")
    p.add_argument("--timeout", type=int, default=300, help="seconds one program may take")
    p.add_argument("--mpi", default="openmpi,mpich", help="which of Debian's MPIs to use, where they are installed")
    return p.parse_args()


def shape(o):
    args = []
    for name in ("tokens", "hidden", "topk", "experts", "seed", "skew", "iters"):
        args += ["--" + name, str(getattr(o, name))]
    return args + (["--check"] if o.check else [])


def build_peers(o, folder):
    """Compiles the peers with each MPI; returns {label: command}."""
    peers = {}
    for mpi in o.mpi.split(","):
        compiler, launcher = shutil.which("mpicc." + mpi), shutil.which("mpirun." + mpi)
        if not compiler or not launcher:
            print(f"compare: mpicc.{mpi} or mpirun.{mpi} is not installed: left out", file=sys.stderr)
            continue
        launch = [launcher, "-n", str(o.ranks)]
        if mpi == "openmpi":
            launch += ["--allow-run-as-root", "--oversubscribe", "--bind-to", binding(o)]
        else:
            launch += ["-bind-to", binding(o)]
        for program in ("mpi_alltoallv", "mpi_shared"):
            binary = os.path.join(folder, f"{program}.{mpi}")
            sources = [os.path.join(HERE, program + ".c"), os.path.join(HERE, "peer.c")]
            sources += [os.path.join(ROOT, "tools", "ferry", f) for f in ("draw.c", "options.c")]
            subprocess.run([compiler, "-std=c11", "-D_GNU_SOURCE", "-O3", "-I" + HERE, "-I" + os.path.join(ROOT, "tools", "ferry"),
                            *sources, "-lcjson", "-lm", "-o", binary], check=True)
            label = f"{program} {mpi}"
            peers[label] = launch + [binary] + shape(o)
            if program == "mpi_alltoallv":
                peers[label + ", own rows copied straight"] = launch + [binary] + shape(o) + ["--own", "direct"]
    return peers


def run(label, command, o):
    try:
        done = subprocess.run(command + ["--json", "-"], capture_output=True, text=True, timeout=o.timeout, check=False)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"compare: {label} took more than {o.timeout} s") from None
    if done.returncode != 0:
        raise SystemExit(f"compare: {label} ended with {done.returncode}: {done.stderr.strip()[-800:]}\n{shlex.join(command)}")
    return json.loads(done.stdout)


def gather(commands, o):
    """By turns, in an order that moves on by one in each round: no program always runs in another's wake."""
    runs = {label: [] for label in commands}
    labels = list(commands)
    for i in range(o.rounds):
        turn = i % len(labels)
        for label in labels[turn:] + labels[:turn]:
            print(f"\r\033[Kround {i + 1}/{o.rounds}: {label}" if sys.stderr.isatty() else "", end="", file=sys.stderr)
            runs[label].append(run(label, commands[label], o))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return runs


def summarise(runs):
    """The median over rounds of each round's median, and of each round's ratio to Ferry's."""
    table = {}
    for label, results in runs.items():
        row = {}
        for step in STEPS:
            medians = [r[step]["median_us"] for r in results]
            ratios = [m / f[step]["median_us"] for m, f in zip(medians, runs["ferry"])]
            row[step] = {"median_us": statistics.median(medians), "rounds_us": medians,
                         "of_ferry": statistics.median(ratios), "of_ferry_range": [min(ratios), max(ratios)],
                         "gbps": results[0][step]["bytes"] / statistics.median(medians) / 1e3}
            floors = [r[step]["of_floor"] for r in results if "of_floor" in r[step]]
            if floors:
                row[step]["of_floor"] = statistics.median(floors)
        row["stalled_rounds"] = sum(label != "ferry" and r["route"]["median_us"] > STALL_US for r in results)
        row["check"] = sorted({r["check"] for r in results})
        table[label] = row
    return table


def markdown(o, table, runs, commands, date):
    config = runs["ferry"][0]["config"]
    hardware = config["hardware"]
    lines = [f"# Ferry beside MPI, {date:%Y-%m-%d}", "",
             f"{o.ranks} ranks (processes of one host), {o.tokens} tokens a rank, hidden {o.hidden}, bf16, "
             f"top-{o.topk} of {o.experts} experts, one row per (token, rank).",
             f"{o.rounds} rounds by turns, {o.iters} timed steps each; a step takes as long as its slowest rank.",
             "Times are the median over rounds of each round's median; `x Ferry` is the median (least to most) of the rounds' ratios.", "",
             f"{hardware['cpu']}, {hardware['cores']} cores, caches {', '.join(hardware['caches'])}, "
             f"{hardware['memory_bytes'] / 2**30:.0f} GiB, {hardware['system']}; Ferry {config['version']}, "
             f"{config['threads']} thread(s) a rank, row kernels {hardware['row_kernels_chosen']}.", "",
             "| program | dispatch us | GB/s | x Ferry | combine us | GB/s | x Ferry | check |",
             "|---|---:|---:|---:|---:|---:|---:|---|"]
    for label, row in table.items():
        cells = [label]
        for step in STEPS:
            s = row[step]
            low, high = s["of_ferry_range"]
            cells += [f"{s['median_us']:.1f}", f"{s['gbps']:.2f}", f"{s['of_ferry']:.2f} ({low:.2f} to {high:.2f})"]
        lines.append("| " + " | ".join(cells + [", ".join(row["check"])]) + " |")
    if binding(o) == "core":
        lines += ["", "MPI's ranks are bound to one core each; Ferry's are placed by the scheduler."]
    else:
        lines += ["", "Ranks outnumber cores, and MPI's ranks spin without yielding: its times are the scheduler's as much as its own."]
    stalled = [f"{label}: {row['stalled_rounds']} of {o.rounds}" for label, row in table.items() if row["stalled_rounds"]]
    if stalled:
        lines += ["", f"**Not to be used as a comparison**: rounds in which even the exchange of counts took over {STALL_US} us, as it does "
                      "where ranks share a core (they are counted in, none was left out): " + "; ".join(stalled) + "."]
    ferry = table["ferry"]
    lines += ["", "Ferry reaches " + " and ".join(f"{100 * ferry[s]['of_floor']:.0f}% of the plain {w}'s rate in {s}"
                                                  for s, w in (("dispatch", "row copy"), ("combine", "row sum"))) + ".", "",
              "Commands:", "", "```"]
    lines += [shlex.join(sys.argv)] + [shlex.join(os.path.basename(c) if "/" in c else c for c in cmd) for cmd in commands.values()]
    return "\n".join(lines + ["```", ""])


def main():
    o = options()
    date = datetime.datetime.now(datetime.timezone.utc)
    if not os.access(o.ferry, os.X_OK):
        raise SystemExit(f"compare: no program at {o.ferry}: build first, or say --ferry PATH")
    with tempfile.TemporaryDirectory(prefix="ferry-compare-") as folder:
        commands = {"ferry": [o.ferry, "bench", "--ranks", str(o.ranks), "--ranks-as", "processes"] + shape(o)}
        commands.update(build_peers(o, folder))
        runs = gather(commands, o)
    table = summarise(runs)
    text = markdown(o, table, runs, commands, date)
    os.makedirs(o.results, exist_ok=True)
    base = os.path.join(o.results, f"{date:%Y-%m-%d}-{o.name}")
    with open(base + ".json", "w", encoding="utf-8") as f:
        json.dump({"date": date.isoformat(), "command": sys.argv, "summary": table, "runs": runs}, f, indent=1)
        f.write("\n")
    with open(base + ".md", "w", encoding="utf-8") as f:
        f.write(text)
    print(text)
    print(f"written to {base}.json and .md")


if __name__ == "__main__":
    main()
