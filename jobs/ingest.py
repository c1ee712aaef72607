"""The job behind `lotlip data ingest`, for `ray job submit -- python jobs/ingest.py ...`."""

import sys

from lotlip_platform.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "ingest", *sys.argv[1:]]))
