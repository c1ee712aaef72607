from __future__ import annotations

import pytest

from lotlip.errors import ConfigError
from lotlip_platform.cluster import ClusterConfig
from lotlip_platform.scaling import most_that_fit, worker_counts


def test_only_numbers_that_divide_the_streams_are_taken() -> None:
    assert worker_counts(ClusterConfig(num_workers=(2, 9)), 16) == [2, 4, 8]
    assert worker_counts(ClusterConfig(num_workers=(3, 3)), 12) == [3]
    assert worker_counts(ClusterConfig(num_workers=4), 16) == [4]
    with pytest.raises(ConfigError, match=r"num_workers=7 must divide .*=16: use one of 1, 2, 4"):
        worker_counts(ClusterConfig(num_workers=(5, 7)), 16)


def test_as_many_as_fit_are_taken() -> None:
    assert [most_that_fit([2, 4, 8], free) for free in (0, 1, 2, 3, 4, 7, 100)] == [
        *(0, 0, 2, 2, 4, 4, 8)
    ]
