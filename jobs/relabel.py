"""The job behind `lotlip relabel`, for `ray job submit -- python jobs/relabel.py ...`."""

import sys

from lotlip_platform.cli import main

if __name__ == "__main__":
    sys.exit(main(["relabel", *sys.argv[1:]]))
