"""The job behind `lotlip models`, for `ray job submit -- python jobs/models.py promote ...`."""

import sys

from lotlip_platform.cli import main

if __name__ == "__main__":
    sys.exit(main(["models", *sys.argv[1:]]))
