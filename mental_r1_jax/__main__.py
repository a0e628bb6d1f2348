"""`python -m mental_r1_jax VERB ...`: the same as `mental-r1 VERB ...`."""

import sys

from mental_r1_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
