"""What a report says of results that are known."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy import stats

from lotlip_platform.sweep_ledger import TrialRecord, scores, table
from lotlip_platform.sweep_report import in_words, make_report

METRIC = "long_text_to_image_r1"
NOTHING = "No point has come to its end with all its seeds."


def record(m: int, value: float, seed: int, *, sentences: int = 0, **changes: Any) -> TrialRecord:
    interval = {"value": value, "low": value - 0.1, "high": value + 0.1}
    result = {
        "samples": 1000,
        "metrics": {METRIC: interval, "short_text_to_image_r1": interval},
        "speed": {"train/samples_per_s": 100.0 + m},
        "seconds": 3600.0,
        "time_ms": 0,
    }
    point = {"model.text.num_corner_tokens": m, "captions.sentences_per_sub_caption": sentences}
    values = {"status": "finished", "num_samples": 1000, "results": [result], "point": point}
    return TrialRecord(name=f"m{m}-{sentences}-s{seed}", seed=seed, **values | changes)


def points(*values: list[float]) -> list[TrialRecord]:
    return [record(m, v, seed) for m, own in enumerate(values) for seed, v in enumerate(own)]


def test_a_score_is_the_mean_with_students_interval_and_the_best_comes_first() -> None:
    best, other, none = scores(
        [*points([0.1, 0.2, 0.3], [0.5, 0.6]), record(2, 0.9, 0, status="failed")], METRIC, "max"
    )
    assert best.mean == pytest.approx(0.55)
    assert other.mean == pytest.approx(0.2)
    expected = stats.t.interval(0.95, 2, loc=0.2, scale=stats.sem([0.1, 0.2, 0.3]))
    assert other.half_width == pytest.approx(expected[1] - 0.2)
    assert math.isnan(none.mean)
    fewest_first = scores(points([0.1], [0.5]), METRIC, "min")
    assert [score.mean for score in fewest_first] == [0.1, 0.5]
    assert math.isnan(fewest_first[0].half_width)


def test_the_words_say_no_more_than_the_intervals_support() -> None:
    found = scores(points([0.10, 0.12, 0.11], [0.50, 0.52, 0.51], [0.4, 0.6, 0.5]), METRIC, "max")
    best, ahead, undecided, how = in_words(found, METRIC, "max")
    assert best.startswith("Best is num_corner_tokens=1")
    assert "over 3 seeds" in best
    assert re.search(r"ahead of num_corner_tokens=0.* by 40\.0 points \[3\d\.\d, 4\d\.\d\]", ahead)
    assert "num_corner_tokens=2" not in ahead
    assert undecided.startswith("Not told apart from it: num_corner_tokens=2")
    assert how == (
        "In brackets: 95% intervals, which hold together for all 3 pairs of points (Bonferroni)."
    )
    assert "more" in in_words(scores(points([0.1], [0.2]), METRIC, "max"), METRIC, "max")[1]
    assert in_words(scores([], METRIC, "max"), METRIC, "max") == [NOTHING]


def test_a_difference_is_that_of_welch() -> None:
    ours, theirs = [0.50, 0.55, 0.58, 0.61], [0.40, 0.20, 0.35]
    words = in_words(scores(points(theirs, ours), METRIC, "max"), METRIC, "max")
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in words[1]


def test_a_point_of_which_trials_are_missing_is_not_compared() -> None:
    lucky = [record(2, 0.9, 0), record(2, 0.1, 1, status="stopped")]
    found = scores([*lucky, *points([0.10, 0.12], [0.50, 0.52])], METRIC, "max")
    words = in_words(found, METRIC, "max")
    assert words[0].startswith("Best is num_corner_tokens=1")
    assert words[-1].startswith("Not compared, since not all their trials came to the end: num_")
    assert words[-1].endswith("sentences_per_sub_caption=0 (1 of 2).")
    assert in_words(scores(lucky, METRIC, "max"), METRIC, "max")[0] == NOTHING


def test_points_chosen_among_many_need_wider_intervals() -> None:
    close = [0.50, 0.52, 0.51], [0.53, 0.55, 0.54]
    words = in_words(scores(points(*close), METRIC, "max"), METRIC, "max")
    assert "It is ahead of num_corner_tokens=0" in words[1]
    others = [[0.1 * m, 0.1 * m + 0.01, 0.1 * m - 0.01] for m in range(1, 4)]
    words = in_words(scores(points(*close, *others), METRIC, "max"), METRIC, "max")
    assert any("Not told apart from it: num_corner_tokens=0" in line for line in words)


def test_the_words_know_that_less_may_be_better() -> None:
    found = scores(points([0.10, 0.12, 0.11], [0.50, 0.52, 0.51]), METRIC, "min")
    best, ahead, how = in_words(found, METRIC, "min")
    assert how == "In brackets: 95% intervals."
    assert best.startswith("Best is num_corner_tokens=0")
    assert ahead.startswith("It is ahead of num_corner_tokens=1")


def test_the_page_holds_all_in_itself_and_failed_trials_with_their_reason() -> None:
    stopped = record(0, 0.1, 9, status="stopped", num_samples=4000)
    failed = record(1, 0.1, 8, status="failed", error="step 3: <loss> is nan", results=[])
    more = [record(m, 0.3, seed, sentences=1) for m in (0, 1) for seed in (0, 1)]
    records = [*points([0.1, 0.2], [0.5, 0.6]), *more, stopped, failed]
    files = make_report("tokens & lengths", records, METRIC, "max")
    page = files["report.html"].decode()
    assert "<h1>tokens &amp; lengths</h1>" in page
    assert "step 3: &lt;loss&gt; is nan" in page
    assert "1 of 10 trials were stopped early, which saved 3,000 of 13,000 samples (23%)." in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("data:image/png;base64,") == 5
    names = {"heat_map", "with_costs", "bars", "front", "short_and_long"}
    assert {f"figures/{name}.png" for name in names} < files.keys()
    for name in names:
        assert Image.open(io.BytesIO(files[f"figures/{name}.png"])).format == "PNG"
    rows = list(csv.DictReader(io.StringIO(files["trials.csv"].decode())))
    assert len(rows) == 10
    assert rows[0]["model.text.num_corner_tokens"] == "0"
    assert rows[0][METRIC] == "0.1"
    assert [row["error"] for row in rows if row["error"]] == ["step 3: <loss> is nan"]


def test_a_sweep_of_which_nothing_came_to_its_end_has_a_report() -> None:
    failed = [record(m, 0.0, 0, status="failed", error="no", results=[]) for m in (0, 1)]
    files = make_report("none", failed, METRIC, "max")
    assert NOTHING.encode() in files["report.html"]
    assert "seed 0: no" in "\n".join(table(failed, METRIC, "max"))


@pytest.mark.browser
def test_a_browser_without_a_network_shows_all_of_the_page(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    long_name = "a setting of several keys, told at length " * 3
    arms = [record(0, 0.1, seed, point={"arm": long_name, "optim.lr": 1e-3}) for seed in (0, 1)]
    more = [record(0, 0.2, seed, point={"arm": "short", "optim.lr": 1e-2}) for seed in (0, 1)]
    page = make_report("tokens", [*arms, *more], METRIC, "max")["report.html"].decode()
    tell = """<script>addEventListener("load", () => document.body.setAttribute("data-told",
        [innerWidth, document.documentElement.scrollWidth,
         ...Array.from(document.images, image => image.naturalWidth)].join(" ")))</script>"""
    file = tmp_path / "report.html"
    file.write_text(page.replace("</head>", f"{tell}</head>"))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,900"]
    command += [f"--user-data-dir={tmp_path}/profile", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--dump-dom", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    told = re.search(r'data-told="([\d ]+)"', shown)
    assert told is not None
    window, needed, *widths = map(int, told[1].split())
    assert needed <= window
    assert len(widths) == 5
    assert min(widths) > 100
