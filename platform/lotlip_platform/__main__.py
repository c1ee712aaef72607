"""`python -m lotlip_platform` is the command `lotlip`."""

import sys

from lotlip_platform.cli import main

if __name__ == "__main__":
    sys.exit(main())
