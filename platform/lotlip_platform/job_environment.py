"""What a process of a job knows of it: variables in its environment, on all its machines."""

from __future__ import annotations

import os

JOB = "LOTLIP_JOB"
"""Its id."""
LOGS = "LOTLIP_JOB_LOGS"
"""The address under which logs of this attempt are kept."""
CODE = "LOTLIP_CODE_VERSION"
"""The commit that its code is of."""


def how_to_go_on(otherwise: str = "the same command") -> str:
    """What continues the run that this process is stopping; `otherwise` if it is no job's."""
    job = os.environ.get(JOB)
    return f"lotlip jobs resume {job}" if job else otherwise
