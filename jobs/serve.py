"""The job behind `lotlip serve`, for `ray job submit -- python jobs/serve.py MODEL --index URI`."""

import sys

from lotlip_platform.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
