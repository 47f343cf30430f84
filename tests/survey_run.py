"""A survey in a process of its own, for tests that kill it: `survey_run.py MODEL OUT SECONDS_A_DOCUMENT`."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Iterator

import signflip as sf


def documents(pause: float = 0.0) -> Iterator[list[int]]:
    """Always the same documents, of 1 to 90 tokens."""
    draw = random.Random(7)
    for _ in range(60):
        time.sleep(pause)
        yield [draw.randrange(60) for _ in range(draw.randrange(1, 90))]


def main() -> None:
    """Survey into `OUT`, writing the state after every request."""
    module = sys.modules["signflip.survey"]
    vars(module).update(_CHECKPOINT=0.0, _BATCH=50)
    model = sf.load(sys.argv[1])
    print("ready", flush=True)
    try:
        sf.survey(model, documents(float(sys.argv[3])), context=32, prefix=[1], out=sys.argv[2], histogram_every=2)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)


if __name__ == "__main__":
    # Which a background job is started without.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
