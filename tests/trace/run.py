#!/usr/bin/env python3
"""ferry trace from outside: a group of which one rank is stopped, as table, timeline and page.

run.py FERRY TRACE_RANK text|page: all but the page, or the page, which a headless Chromium is made to click through.
Exit status 77: SKIP, said in words.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import Browser

FERRY, RANK = sys.argv[1], sys.argv[2]
RANKS, STEPS, VICTIM = 4, 60, 2
failures = 0


def check(name, good, more=""):
    global failures
    failures += not good
    print(("ok   " if good else "FAIL ") + name + ("" if good else f": {more}"), flush=True)


def trace(*arguments):
    done = subprocess.run([FERRY, "trace", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    return done.returncode, done.stdout.decode()


class Group:
    """The ranks, as `ferry run` starts them; VICTIM has stopped itself when the object is there."""

    def __init__(self, *arguments, **env):
        self.run = subprocess.Popen(
            [FERRY, "run", "-n", str(RANKS), "--grace", "5", "--", RANK, str(STEPS), str(VICTIM), *arguments],
            env={**os.environ, **env},
            stderr=subprocess.PIPE,
        )

    def hung(self):
        """Waits until the others wait; (group, table)."""
        for _ in range(600):
            for line in trace()[1].splitlines()[1:]:
                words = line.split()
                if words[1:4] != [str(RANKS), "of", str(RANKS)] or len(words) != 4 + RANKS:
                    continue
                table = trace(words[0])[1]
                if "process stopped" in table and table.count("waits since") == RANKS - 1:
                    self.pids = [int(w) for w in words[4:]]
                    self.victim = int(re.search(rf"^rank {VICTIM} +pid (\d+)", table, re.M).group(1))
                    return words[0], table
            time.sleep(0.05)
        self.run.kill()
        sys.exit("the ranks did not come to wait for each other: " + trace()[1])

    def end(self, go_on):
        try:
            os.kill(self.victim, signal.SIGCONT if go_on else signal.SIGKILL)
        except ProcessLookupError:
            pass  # `ferry run` was faster
        _, err = self.run.communicate(timeout=60)
        return self.run.returncode, err.decode()


def waits(table):
    return re.findall(
        r"^rank (\d+) .*?(dispatch \d+)[^:]*: waits since ([\d.]+) (m?s) for (\w+) (\d+) of (.*)$", table, re.M
    )


def check_table(group, table):
    found = waits(table)
    check("who waits", [int(w[0]) for w in found] == [r for r in range(RANKS) if r != VICTIM], table)
    check("in which step", {w[1] for w in found} == {f"dispatch {STEPS + 1}"}, table)
    check("for which note", {(w[4], int(w[5])) for w in found} == {("READY", STEPS + 1)}, table)
    check("of whom", {w[6] for w in found} == {f"rank {VICTIM} (has said {STEPS - 1})"}, table)
    check("its last step", f"process stopped; in no step; the last was combine {STEPS}, over for" in table, table)
    check("the cause", table.endswith(f"=> all wait for rank {VICTIM}\n"), table)
    time.sleep(1.2)
    later = waits(trace(group[:6])[1])
    check("since when", all(float(w[2]) >= 1.2 and w[3] == "s" for w in later) and len(later) == RANKS - 1, later)


def check_targets(pids, group):
    code, text = trace(str(pids[0]))
    check("by a process", code == 0 and f"group {group}" in text, text)
    code, text = trace("0123456789abcdef0")
    check("by nothing", code == 1 and "is called 0123456789abcdef0" in text, text)
    code, text = trace("--frobnicate")
    check("a wrong option", code == 2, text)
    code, text = trace(group, "--perfetto", "/nowhere/at/all")
    check("a file that cannot be", code == 1 and "nowhere" in text, text)


def check_perfetto(group, folder):
    path = Path(folder, "trace.json")
    code, text = trace(group, "--perfetto", str(path))
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    check("a process for each rank", code == 0 and sorted(names) == list(range(RANKS)), names)
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    check("threads", threads[0, 0] == "calls" and threads[0, 1] == "stream 1", threads)
    slices = [e for e in events if e["ph"] == "X"]
    check("times", all(e["ts"] >= 0 and e["dur"] >= 0 for e in slices), "negative")
    for rank in range(RANKS):
        mine = [e for e in slices if e["pid"] == rank and e["cat"] == "dispatch"]
        want = STEPS + (rank != VICTIM)
        check(f"dispatches of rank {rank}", [e["name"] for e in mine] == [f"dispatch {i + 1}" for i in range(want)],
              [e["name"] for e in mine])  # fmt: skip
        check(f"by turns on the stream of rank {rank}", [e["tid"] for e in mine[:STEPS]] == [0, 1] * (STEPS // 2),
              [e["tid"] for e in mine])  # fmt: skip
        live = [e["name"] for e in slices if e["pid"] == rank and e.get("args", {}).get("goes_on")]
        check(f"what goes on of rank {rank}", live == ([] if rank == VICTIM else [f"dispatch {STEPS + 1}"]), live)
        parts = [e for e in slices if e["pid"] == rank and e["cat"] in ("wait", "move")]
        inside = all(
            any(s["ts"] <= p["ts"] + 1e-3 and p["ts"] + p["dur"] <= s["ts"] + s["dur"] + 1e-3 for s in slices
                if s["pid"] == rank and s["tid"] == p["tid"] and s["cat"] not in ("wait", "move"))
            for p in parts
        )  # fmt: skip
        check(f"parts lie in steps of rank {rank}", bool(parts) and inside, "one does not")
        lanes = {t: sorted((e["ts"], e["ts"] + e["dur"]) for e in slices
                           if (e["pid"], e["tid"]) == (rank, t) and e["cat"] not in ("wait", "move")) for t in (0, 1)}  # fmt: skip
        apart = all(a[1] <= b[0] + 1e-3 for lane in lanes.values() for a, b in zip(lane, lane[1:]))
        check(f"steps of a lane of rank {rank} follow each other", apart, "they overlap")
    arrows = [e for e in events if e["ph"] in "sf"]
    ids = sorted(e["id"] for e in arrows)
    check("arrows come in pairs", ids[::2] == ids[1::2], ids)


def check_dump(folder):
    group = Group(FERRY_TIMEOUT_MS="1500", FERRY_DUMP_DIR=folder)
    number, _ = group.hung()
    for _ in range(100):
        files = sorted(Path(folder).glob(f"ferry-{number}-*.txt"))
        if len(files) == RANKS - 1:
            break
        time.sleep(0.1)
    group.end(False)
    ranks = sorted(int(f.name.split("-")[2]) for f in files)
    check("a table of each rank that timed out", ranks == [r for r in range(RANKS) if r != VICTIM], ranks)
    for file in files:
        rank, pid = (int(n) for n in file.stem.split("-")[2:])
        text = file.read_text()
        check(f"rank {rank} says so", text.startswith(f"written by rank {rank}, whose wait has failed\n"), text)
        check(f"rank {rank} names the cause", f"=> all wait for rank {VICTIM}" in text, text)
        check(f"rank {rank}'s own wait", f"gave up dispatch {STEPS + 1}" in text and pid in group.pids, text)
        check(f"rank {rank}'s table is its user's", stat.S_IMODE(file.stat().st_mode) == 0o600, file)


def check_page(group, folder):
    path = Path(folder, "trace.html")
    code, text = trace(group, "--html", str(path))
    check("the page is written", code == 0, text)
    page = path.read_text()
    check("the page needs nothing else", not re.search(r"(src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page),
          "it refers to something")  # fmt: skip
    with Browser(path) as browser:
        seen = browser.value
        check("no errors", browser.errors() == [], browser.errors())
        check("the table", f"all wait for rank {VICTIM}" in seen("document.getElementById('table').textContent"))
        shown = "[...document.querySelectorAll('section')].filter(s => s.offsetHeight > 0).map(s => s.id).join()"
        check("the timeline is shown first", seen(shown) == "timeline", seen(shown))
        bars = "document.querySelectorAll('#lanes rect.step').length"
        before = seen(bars)
        browser.click("#all")
        check("all steps of all ranks", seen(bars) >= before and seen(bars) == seen("every.length"), seen(bars))
        browser.click(f"rect[data-step='dispatch {STEPS + 1}'][data-rank='0']")
        detail = seen("document.getElementById('detail').textContent")
        check("a step tells", f"rank 0: dispatch {STEPS + 1}" in detail and "wait for READY not over" in detail, detail)
        check("it is marked", seen("document.querySelectorAll('.picked').length") == 1)
        span = seen("to - from")
        browser.click("#in")
        check("closer", abs(seen("to - from") / span - 0.5) < 1e-6, seen("to - from"))
        browser.click("#show-traffic")
        check("traffic is shown", seen(shown) == "traffic", seen(shown))
        cells = "[...document.querySelectorAll('#heat td')].map(c => c.title)"
        there = [int(re.search(r"(\d+) rows", t).group(1)) for t in seen(cells)]
        # 32 tokens choose two neighbours of eight experts by turns: 16 rows to each rank, a step.
        check("rows of each pair", sorted(set(there)) in ([STEPS * 16], [STEPS * 16, STEPS * 16 + 16]), there)
        browser.click("#back")
        check("and back", seen(cells)[0].startswith(f"rank 0, rank 0: {STEPS * 16} rows"), seen(cells)[0])
        browser.click("#show-slow")
        check("slow ranks are shown", seen(shown) == "slow", seen(shown))
        waits_of = "slow.map(s => [s.rank, s.waits])"
        order = [
            int(r) for r in seen("[...document.querySelectorAll('#ranking tr[data-rank]')].map(r => r.dataset.rank)")
        ]
        check("every rank is ranked", sorted(order) == list(range(RANKS)) and len(seen(waits_of)) == RANKS, order)
        browser.click("#show-timeline")
        check("and back to the timeline", seen(shown) == "timeline", seen(shown))


def main():
    if sys.argv[3:] == ["page"] and not shutil.which("chromium"):
        print("SKIP the page of ferry trace: no chromium on this machine")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[3:] == ["page"]:
            group = Group("latency", FERRY_TIMEOUT_MS="60000")
            number, _ = group.hung()
            check_page(number, folder)
            group.end(True)
        else:
            group = Group(FERRY_TIMEOUT_MS="60000")
            number, table = group.hung()
            check_table(number, table)
            check_targets(group.pids, number)
            check_perfetto(number, folder)
            code, err = group.end(True)
            check("reading disturbs nobody: all end well", code == 0, err)
            check_dump(folder)
            off = Group(FERRY_TIMEOUT_MS="3000", FERRY_RECORDER="0")
            off.run.communicate(timeout=60)
            check("without a recorder the sentence is still there", off.run.returncode != 0)
    print(f"{failures} failed")
    sys.exit(failures > 0)


main()
