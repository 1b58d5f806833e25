"""`python -m app`: the same as `altdiffusion app`."""

import sys

from altdiffusion.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["app", *sys.argv[1:]]))
