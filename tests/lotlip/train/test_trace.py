from __future__ import annotations

import re

import pytest

from lotlip.data.pipeline import SampleTrace
from lotlip.errors import DataError
from lotlip.train.trace import StepTrace, compare, joined, read_trace

SAMPLES = tuple(SampleTrace(f"{k:04d}", f"short;llava[{k}:{k + 2}]", f"{k:08x}") for k in range(6))


def step(number: int, samples: tuple[SampleTrace, ...] = SAMPLES) -> StepTrace:
    return StepTrace(step=number, epoch=0, samples=samples)


RUN = [step(number) for number in range(1, 5)]


def test_a_trace_survives_its_file() -> None:
    lines = [one.to_line() for one in RUN]
    assert list(read_trace(lines, "here")) == RUN
    assert "\n" not in lines[0]


@pytest.mark.parametrize("line", ["", "x", "[]", '{"step": 1}', '{"step": 1, "samples": [[1]]}'])
def test_a_line_that_is_no_step_is_named(line: str) -> None:
    with pytest.raises(DataError, match=r"^here: line 2 is not a step of a trace$"):
        list(read_trace([RUN[0].to_line(), line], "here"))


def test_the_shares_of_the_workers_give_the_trace_of_one() -> None:
    shares = [[step(k, SAMPLES[2 * rank : 2 * rank + 2]) for k in range(1, 5)] for rank in range(3)]
    assert joined(shares) == RUN


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"key": "7777"}, "1 of 6 samples differ, the first at position 3: key '0003' against"),
        ({"captions": "short"}, r"position 3: captions of 0003 'short;llava\[3:5\]' against"),
        ({"content": "ffffffff"}, "position 3: content of 0003 '00000003' against 'ffffffff'"),
    ],
)
def test_where_two_runs_part_is_told(change: dict[str, str], expected: str) -> None:
    changed = (*SAMPLES[:3], SAMPLES[3]._replace(**change), *SAMPLES[4:])
    found = compare(RUN, [*RUN[:2], step(3, changed), RUN[3]])
    assert (found.num_equal, found.parts) == (2, True)
    assert found.text.startswith("step 3 (epoch 0): ")
    assert re.search(expected, found.text)


def test_a_trace_that_ends_earlier_is_no_difference() -> None:
    assert compare(RUN, RUN) == (4, False, "")
    assert compare(RUN, RUN[:3]) == (3, False, "the second ends")
    assert compare(RUN[:1], RUN) == (1, False, "the first ends")
    assert (
        compare(RUN, RUN[1:]).text
        == "step 1 of epoch 0 stands where the other has step 2 of epoch 0"
    )
    assert compare(RUN, [step(1, SAMPLES[:5])]).text == "step 1 (epoch 0): 6 samples against 5"
