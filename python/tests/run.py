#!/usr/bin/env python3
"""Runs the tests where there is no pytest: run.py [FILE...]. Ends with one line, "N passed, N failed, N skipped"."""

import importlib
import sys
import time
import traceback
from pathlib import Path

here = Path(__file__).parent
sys.path.insert(0, str(here))


def main():
    import harness

    counts = {"passed": 0, "failed": 0, "skipped": 0}
    files = [Path(f).name for f in sys.argv[1:]] or sorted(f.name for f in here.glob("test_*.py"))
    for file in files:
        module, begun = importlib.import_module(Path(file).stem), time.monotonic()
        for name, test in list(vars(module).items()):
            if not name.startswith("test_") or not callable(test):
                continue
            for case in getattr(test, "cases", [{}]):
                label = f"{file}::{name}{list(case.values()) or ''}"
                try:
                    test(**case)
                    counts["passed"] += 1
                except harness.SKIPS as why:
                    counts["skipped"] += 1
                    print(f"SKIP {label}: {why}")
                except Exception:
                    counts["failed"] += 1
                    print(f"FAIL {label}\n{traceback.format_exc()}")
        print(f"{file}: {time.monotonic() - begun:.1f} s", flush=True)
    harness.end_pools()
    print(", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
