"""What the examples of deep unfolding share: options, and claims part by part."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from _common import Claim, numbers, table


def main(file: str, doc: str, parts: dict[str, Callable[[bool], list[Claim]]]) -> None:
    """Read the options, run the parts, and print or write what was found."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the claims as JSON instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the claims as JSON to FILE")
    parser.add_argument("--quick", action="store_true", help="a short run, too short for most claims")
    parser.add_argument("--only", choices=list(parts), help="run one part")
    options = parser.parse_args()
    began, claims, seconds = time.perf_counter(), [], {}
    for name, part in parts.items():
        if options.only in (None, name):
            claims += part(options.quick)
            seconds[name] = round(time.perf_counter() - began - sum(seconds.values()))
    rows = [{"claim": c.text, "expected": c.expected(), "seen": numbers(c.seen), "ok": c.ok} for c in claims]
    content = json.dumps({"command": f"examples/{Path(file).name}", "quick": options.quick, "claims": rows}, indent=1)
    if options.out:
        options.out.write_text(content + "\n")
    print(content if options.json else table(claims))
    if not options.json:
        print(", ".join(f"{name} {count} s" for name, count in seconds.items()))
