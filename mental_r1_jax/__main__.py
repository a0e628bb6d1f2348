"""`python -m mental_r1_jax VERB ...`: the same as `mental-r1 VERB ...`."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line and end the process; Ctrl-C ends it with one line and status 130.

    A job may raise its own `KeyboardInterrupt` for other signals, with their number and a line.
    """
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        # Imported here, because this takes long enough to be interrupted.
        from mental_r1_jax.cli import main as run

        try:
            status = run()
        finally:
            # What is left is to wait for threads. A Ctrl-C ends that by the system's own action:
            # an exception in there would be printed as a traceback.
            if signal.getsignal(signal.SIGINT) == _interrupt:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt as interrupt:
        # Background threads, the compiler's for one, would be waited for.
        print(str(interrupt) or "interrupted", file=sys.stderr, flush=True)
        os._exit(128 + getattr(interrupt, "number", signal.SIGINT))
    sys.exit(status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt once; a second Ctrl-C ends the process at once, by the system's own action."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
