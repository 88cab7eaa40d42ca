"""What the examples of deep unfolding share: options, and claims part by part."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _common import GOLDEN, Claim, Result, golden_text, numbers, table

Parts = dict[str, Callable[[bool], list[Claim]]]
TOLERANCE = 0.02  # of a short run in float32, whose last bits are another machine's own; errors in dB


def run(parts: Parts, config: dict[str, Any], *, quick: bool, only: Sequence[str] = ()) -> Result:
    """Run the parts, all of them or some; the curve is what was seen, by part and claim, the extra the seconds of each."""
    found, seconds = {}, {}
    for name in only or parts:
        began = time.perf_counter()
        found[name] = parts[name](quick)
        seconds[name] = round(time.perf_counter() - began)
    claims = [claim for part in found.values() for claim in part]
    curve = {name: {claim.text: claim.seen for claim in part} for name, part in found.items()}
    return Result({**config, "parts": list(found)}, claims, curve, seconds)


def main(file: str, doc: str, parts: Parts, config: dict[str, Any]) -> None:
    """Read the options, run the parts, and print or write what was found."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the claims as JSON instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the claims as JSON to FILE")
    parser.add_argument("--quick", action="store_true", help="a short run, too short for most claims")
    parser.add_argument("--only", choices=list(parts), help="run one part")
    parser.add_argument("--golden", action="store_true", help="write benchmarks/golden/ (a full and a quick run)")
    options = parser.parse_args()
    if options.golden and (options.quick or options.only):
        parser.error("--golden runs all parts in full, and then in short: it takes neither --quick nor --only.")
    result = run(parts, config, quick=options.quick, only=[options.only] if options.only else [])
    if options.golden:
        short = run(parts, config, quick=True)
        text = golden_text(Path(file).name, 1, result, short, TOLERANCE)
        (GOLDEN / f"{Path(file).stem}.json").write_text(text)
    rows = [{"claim": c.text, "expected": c.expected(), "seen": numbers(c.seen), "ok": c.ok} for c in result.claims]
    content = json.dumps({"command": f"examples/{Path(file).name}", "quick": options.quick, "claims": rows}, indent=1)
    if options.out:
        options.out.write_text(content + "\n")
    print(content if options.json else table(result.claims))
    if not options.json:
        print(", ".join(f"{name} {count} s" for name, count in result.extra.items()))
