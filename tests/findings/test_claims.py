"""What findings say of results that are known."""

from __future__ import annotations

from claims import ARMS, BOTH, LONG_ONLY, LOTLIP, SHORT_ONLY, WEIGHTED, claims
from page import findings_page

from lotlip_platform.sweep_ledger import Score, TrialRecord, scores

_SEEDS = range(4)


def of_points(points: dict[str, tuple[str, object, float, float]]) -> list[Score]:
    """By name: a key and its value, and what is reached with short texts and with long ones."""
    records = [
        TrialRecord(
            name=f"{name}-{seed}",
            point={key: value},
            seed=seed,
            status="finished",
            num_samples=1,
            results=[result(short + seed / 1000, long - seed / 1000, tokens=10.0 * place)],
        )
        for place, (name, (key, value, short, long)) in enumerate(points.items(), 1)
        for seed in _SEEDS
    ]
    return scores(records, "long_text_to_image_r1", "max")


def result(short: float, long: float, tokens: float) -> dict:
    values = {
        "short_text_to_image_r1": short,
        "colour_class_zero_shot_top1": short,
        "long_text_to_image_r1": long,
        "long_image_to_text_r1": long,
    }
    return {
        "samples": 1,
        "seconds": 1.0,
        "speed": {"train/samples_per_s": 1.0, "train/tokens_per_s": tokens},
        "metrics": {name: {"value": value} for name, value in values.items()},
    }


def arms(**changes: tuple[float, float]) -> list[Score]:
    known = {
        "short": (SHORT_ONLY, 0.7, 0.1),
        "long": (LONG_ONLY, 0.2, 0.6),
        "both": (BOTH, 0.5, 0.5),
        "lotlip": (LOTLIP, 0.6, 0.7),
        "weighted": (WEIGHTED, 0.5, 0.5),
    }
    points = {name: ("arm", label, *known[name][1:]) for name, (label, *_) in known.items()}
    for name, reached in changes.items():
        points[name] = ("arm", known[name][0], *reached)
    return of_points(points)


def lengths(*reached: float) -> list[Score]:
    key = "captions.sentences_per_sub_caption"
    values = {str(place): (key, place, 0.5, long) for place, long in enumerate(reached[:-1], 1)}
    return of_points({**values, "all": (key, 0, 0.5, reached[-1])})


def verdicts(of_arms: list[Score], of_lengths: list[Score]) -> list[str]:
    by_label = {label: next(s for s in of_arms if s.label == label) for label in ARMS}
    in_order = sorted(of_lengths, key=lambda s: s.records[0].name)
    return [claim.verdict for claim in claims(by_label, {s.label: s for s in in_order})]


def test_a_claim_is_reproduced_only_where_the_intervals_say_so() -> None:
    assert verdicts(arms(), lengths(0.1, 0.4, 0.5)) == 7 * ["reproduced"]
    other = arms(lotlip=(0.4, 0.501), both=(0.7, 0.5))
    assert verdicts(other, lengths(0.4, 0.5, 0.3)) == [
        "reproduced",
        "reproduced",
        "undecided",  # short captions alone are as good as both
        "not reproduced",  # and LoTLIP is worse
        "undecided",
        "not reproduced",  # the longest captions are worse than shorter ones
        "reproduced",
    ]
    assert verdicts(arms(), lengths(0.1, 0.2, 0.5))[-1] == "not reproduced"
    nothing_lost = arms(both=(0.7, 0.5), lotlip=(0.8, 0.7))
    assert verdicts(nothing_lost, lengths(0.1, 0.2, 0.5))[2:4] == ["undecided", "undecided"]


def test_the_page_tells_where_corner_tokens_are_ahead_at_the_same_weight() -> None:
    def weights(heavy: float) -> list[Score]:
        parts = {
            f"m = {m}, short 1/{share}": (0.5, heavy if m == 2 and share == 4 else 0.5)
            for m in (0, 2)
            for share in (2, 4)
        }
        records = [
            TrialRecord(
                name=f"{label}{seed}",
                point={"arm": label, "train.num_samples": 100},
                seed=seed,
                status="finished",
                num_samples=1,
                results=[result(short, long + seed / 1000, 1.0)],
            )
            for label, (short, long) in parts.items()
            for seed in _SEEDS
        ]
        return scores(records, "long_text_to_image_r1", "max")

    length = lengths(0.1, 0.4, 0.5)
    page = findings_page(arms(), length, weights(0.6), weights(0.6), num_tested=2000)
    told = "ahead in `long_text_to_image_r1` (short 1/4, num_samples=100)"
    assert page.count(told.removeprefix("ahead in ")) == 2
    assert "(LoTLIP); `short" in page  # 0.1 ahead of its control, in all three
    assert "| Corner tokens bring some of that back. | **reproduced** |" in page
    assert "+10.0 [" in page
    assert "nan" not in page
