"""The job behind `lotlip precompute`, for `ray job submit -- python jobs/precompute.py ...`."""

import sys

from lotlip_platform.cli import main

if __name__ == "__main__":
    sys.exit(main(["precompute", *sys.argv[1:]]))
