"""The job behind `lotlip sweep`, for `ray job submit -- python jobs/sweep.py ...`."""

import sys

from lotlip_platform.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
