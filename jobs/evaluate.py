"""The job behind `lotlip eval`, for `ray job submit -- python jobs/evaluate.py ...`."""

import sys

from lotlip_platform.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
