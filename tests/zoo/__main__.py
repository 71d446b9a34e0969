"""Command line: ``python -m tests.zoo [--library timm] [--only NAME] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .entries import LIBRARIES, entries, entry
from .pool import check, run_entries
from .result import Result
from .sample import SAMPLE
from .table import render, thin_libraries

#: The hand-written networks are toys: their few position tables and biases weigh as much as their matrices.
REAL_SIZES = set(LIBRARIES) - {"torch"}


def main(arguments: list[str] | None = None) -> int:
    """Run the zoo; the exit code is 0 when every model passes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.zoo", description="Convert and check every model of the zoo."
    )
    parser.add_argument("--library", action="append", choices=LIBRARIES, help="only this library; may be repeated")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only models whose name contains TEXT")
    parser.add_argument("--here", metavar="LIBRARY/NAME", help="check one model in this process and print everything")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--seconds", type=float, default=600, help="limit of time for one model (default 600)")
    parser.add_argument("--gib", type=float, default=10, help="limit of memory for one model (default 10)")
    parser.add_argument("--budget", type=float, default=8, help="seconds for moving posteriors one by one (default 8)")
    parser.add_argument("--samples", type=int, default=400, help="draws for the spread of some models (default 400)")
    parser.add_argument("--source-only", action="store_true", help="only see whether the models themselves run")
    parser.add_argument("--sample", action="store_true", help="only the models that every test run checks")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth model of each library")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args(arguments)
    checks = {"budget": options.budget, "source_only": options.source_only, "samples": options.samples}
    if options.here:
        print(json.dumps(check(entry(options.here).key, checks).to_json(), indent=1))
        return 0
    results: list[Result] = []
    missing: list[str] = []
    for library in options.library or LIBRARIES:
        try:
            listed = entries(library)
        except ImportError as err:
            print(f"{library}: skipped, {err}; pip install --no-deps -r tests/zoo/requirements.txt")
            missing.append(library)
            continue
        listed = [e for e in listed if not options.only or any(text in e.name for text in options.only)]
        listed = [e for e in listed if not options.sample or e.name in SAMPLE.get(library, ())][:: options.every]
        if options.list:
            print("\n".join(e.key for e in listed))
            continue
        if not listed:
            continue
        for result in run_entries(listed, options.jobs, options.seconds, options.gib, checks):
            results.append(result)
            print(_line(len(results), result), flush=True)
            if options.json:
                options.json.write_text(json.dumps([r.to_json() for r in results], indent=1))
    if results:
        print("\n" + render(results))
    thin = thin_libraries([result for result in results if result.key.split("/")[0] in REAL_SIZES])
    if thin:
        print(f"\nLess than 99 % of the eligible weights are Bayesian in {', '.join(thin)}.")
    return int(any(not result.ok for result in results) or bool(thin or missing))


def _line(number: int, result: Result) -> str:
    state = "ok  " if result.ok else "FAIL"
    facts = result.facts
    text = f"{number:4d} {state} {result.key:60s} {facts.get('seconds', 0):6.1f} s {facts.get('peak_mib', 0):6d} MiB"
    return text + "".join(
        f"\n       {name}: {message.splitlines()[0][:300]}" for name, message in result.failed.items()
    )


if __name__ == "__main__":
    sys.exit(main())
