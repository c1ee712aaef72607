"""The job behind `lotlip data scenes`, for `ray job submit -- python jobs/scenes.py ...`."""

import sys

from lotlip_platform.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "scenes", *sys.argv[1:]]))
