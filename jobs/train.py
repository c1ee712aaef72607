"""The job behind `lotlip train`, for `ray job submit -- python jobs/train.py ...`."""

import sys

from lotlip_platform.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
