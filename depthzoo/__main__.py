"""``python -m depthzoo``: the same as the command ``depthzoo``."""

import sys

from depthzoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
