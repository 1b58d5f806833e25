"""`python -m altdiffusion`."""

import sys

from altdiffusion.cli import main

if __name__ == "__main__":
    sys.exit(main())
