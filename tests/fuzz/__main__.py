"""`python -m tests.fuzz MINUTES [SEED]`: rounds of drawn cases until the time is over; `make fuzz MINUTES=` runs it.

Every kind of failure is reported once, with the seed of its round, and fuzzing goes on without that kind of head; the
exit code is 1 if there was any. Memory is compared with that after the first round.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence

from tests.fuzz.draw import drawn_cases_hold
from tests.fuzz.house import RSS_GROWTH_BYTES_MAX, Broken, fuzz_house

ROUND_CASES = 500


def main(arguments: Sequence[str]) -> int:
    minutes = float(arguments[0]) if arguments else 1.0
    seed = int(arguments[1]) if len(arguments) > 1 else secrets.randbelow(2**32)
    ends_s = time.monotonic() + 60 * minutes
    found: dict[str, str] = {}
    without: set[str] = set()
    with fuzz_house() as house:
        house.warm_up()
        settled = 0
        while time.monotonic() < ends_s:
            try:
                drawn_cases_hold(house, seed=seed, cases=ROUND_CASES, without=without)
            except Broken as broken:
                _report(broken, found)
                without.add(broken.kind.removeprefix("head: "))
            except ExceptionGroup as several:
                for each in several.exceptions:
                    if not isinstance(each, Broken):
                        raise
                    _report(each, found)
                    without.add(each.kind.removeprefix("head: "))
            house.rest()
            settled = settled or house.rss_bytes()
            growth = house.rss_bytes() - settled
            print(f"seed {seed}: {house.played} cases played, memory {growth / 2**20:+.1f} MiB", flush=True)
            if growth > RSS_GROWTH_BYTES_MAX:
                found["memory"] = f"grew by {growth} bytes"
                break
            seed += 1
    print(f"{len(found)} kinds of failure" + "".join(f"\n- {kind}: {text}" for kind, text in found.items()))
    return 1 if found else 0


def _report(broken: Broken, found: dict[str, str]) -> None:
    notes = "\n".join(getattr(broken, "__notes__", []))
    print(f"FOUND {broken}\n{notes}\n", flush=True)
    found.setdefault(broken.kind, str(broken).partition("\n")[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
