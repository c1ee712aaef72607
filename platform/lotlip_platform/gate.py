"""The gate before an alias: what a candidate shows beside the champion, check by check."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from lotlip.data import scenes
from lotlip.data.manifest import read_manifest
from lotlip.errors import CheckpointError, ConfigError, DataError, LotlipError
from lotlip.evaluate.benchmarks import Benchmark, read_benchmark
from lotlip.evaluate.embed import best_device, embed_images, embed_texts
from lotlip.evaluate.retrieval import Answers, Interval
from lotlip.model import LoTLIP
from lotlip_platform import probe
from lotlip_platform.gate_config import GateBenchmark, GateConfig
from lotlip_platform.gate_report import Check, GateReport, Verdict
from lotlip_platform.registered_version import RegisteredVersion
from lotlip_platform.shard_versions import check_shards
from lotlip_platform.storage import open_store

_NUM_TIMED = 9
_RULE_OF_THREE = 3
"""So many times one over the number of queries may still be wrong where none was seen to be."""
_MIN_DISCORDANT = 10
"""So many queries must be answered right by one model alone, before a bootstrap tells who is
better."""
Champion = tuple[int, LoTLIP | str] | None
"""Number and model of the version to compare with, or why it can't be loaded."""


def judge(
    config: GateConfig,
    candidate: RegisteredVersion,
    champion: Champion,
    note: Callable[[str], None],
) -> GateReport:
    """Put a candidate to the gate. What can't be checked is refused with the reason.

    Raises: ConfigError for a metric that a benchmark doesn't have.
    """
    checks = list(_origin_checks(config, candidate))
    note(f"loading version {candidate.number}")
    try:
        model = candidate.load()
    except CheckpointError as error:
        checks.append(_check("loads", "", str(error)[:160], is_passed=False))
    else:
        checks += _served_checks(config, candidate, model)
        beside = champion[1] if champion else None
        if isinstance(beside, str):
            checks.append(_check("champion", "loads", beside[:160], is_passed=False))
        for name, asked in config.benchmarks.items():
            note(f"{name} on {asked.data}")
            other = beside if isinstance(beside, LoTLIP) else None
            try:
                checks += _benchmark_checks(config, name, asked, model, other)
            except DataError as error:
                checks.append(_check(name, "can be run", str(error)[:160], is_passed=False))
    return GateReport(
        model=candidate.name,
        candidate=candidate.number,
        champion=champion[0] if champion else 0,
        config=config,
        checks=tuple(checks),
    )


def _origin_checks(config: GateConfig, candidate: RegisteredVersion) -> Iterator[Check]:
    origin = candidate.origin
    status = origin.status or "no run"
    yield _check("run", "FINISHED", status, is_passed=status == "FINISHED")
    if config.clean_code:
        code = origin.code_version
        is_clean = bool(code) and not code.endswith("+changes")
        told = code[:12] + code[40:]  # a short name for a commit
        yield _check("code", "committed", told or "unknown", is_passed=is_clean)
    if config.data_present:
        found, was = _data_there(origin.data), origin.data_manifest
        demand = f"manifest {was or 'of the run'}"
        yield _check("training data", demand, found, is_passed=bool(was) and found == was)


def _data_there(uri: str) -> str:
    """The digest of the manifest, if all its shards are there; else what is wrong."""
    if not uri:
        return "unknown"
    try:
        store = open_store(uri)
        manifest = read_manifest(store)
        check_shards(store, manifest, {})
        return manifest.digest
    except LotlipError as error:
        return f"gone: {error}"[:120]


def _served_checks(
    config: GateConfig, candidate: RegisteredVersion, model: LoTLIP
) -> Iterator[Check]:
    """Whether it is what was registered, and neither too large nor too slow to be served."""
    found, is_same = _probed(model, candidate)
    yield _check("embeddings of its probe", "as stored, bit for bit", found, is_passed=is_same)
    size_mb, most_mb = candidate.num_bytes / 1e6, config.max_size_mb
    demand = f"<= {most_mb:g} MB"
    yield _check("size", demand, f"{size_mb:.1f} MB", is_passed=size_mb <= most_mb)
    latency_ms, most_ms = _latency_ms(model), config.max_latency_ms
    demand = f"<= {most_ms:g} ms"
    yield _check("latency", demand, f"{latency_ms:.0f} ms", is_passed=latency_ms <= most_ms)


def _probed(model: LoTLIP, candidate: RegisteredVersion) -> tuple[str, bool]:
    try:
        difference = probe.largest_difference(model, candidate.probe_files)
        made_on = probe.made_on(candidate.probe_files)
    except CheckpointError as error:
        return str(error)[:160], False
    if difference == 0.0:
        return "the same", True
    here = probe.machine()
    where = f": made on {made_on}, this is {here}" if made_on != here else ""
    return f"differ by up to {difference:.1g}{where}", False


def _latency_ms(model: LoTLIP) -> float:
    """Of one image and one text, on one thread of the CPU: the median."""
    sample = scenes.make_sample(0, 0)
    (text,) = sample.long.values()
    times = []
    with probe.one_thread():
        for _ in range(1 + _NUM_TIMED):
            began = time.perf_counter()
            embed_images(model, [sample.image])
            embed_texts(model, [text])
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def _benchmark_checks(
    config: GateConfig, name: str, asked: GateBenchmark, candidate: LoTLIP, champion: LoTLIP | None
) -> Iterator[Check]:
    store = open_store(asked.data)
    benchmark = Benchmark(name, read_benchmark(store, read_manifest(store), asked.num_samples))
    ours = benchmark.meet(candidate.to(best_device()))[0].answers
    for metric in asked.metrics:
        if metric not in ours:
            raise ConfigError(
                f"benchmarks.{name} has no metric {metric}; it has: {', '.join(ours)}"
            )
    theirs = benchmark.meet(champion.to(best_device()))[0].answers if champion else {}
    for metric in asked.metrics:
        mine, other = ours[metric], theirs.get(metric)
        difference = _difference(config, mine, other)
        for demand, verdict in _demands(config, asked, metric, mine, other, difference):
            yield Check(
                name=f"{name}/{metric}",
                demand=demand,
                candidate=_percent(mine),
                champion=_percent(other) if other else "",
                difference=f"{100 * difference.value:+.1f}" if difference else "",
                interval=_ends(difference) if difference else "",
                verdict=verdict,
                shares=_shares(mine, other),
            )


def _shares(mine: Answers, other: Answers | None) -> dict[str, float]:
    shares = {"candidate": float(mine.hits_Q.mean())}
    if other is not None:
        shares["champion"] = float(other.hits_Q.mean())
        shares["difference"] = shares["candidate"] - shares["champion"]
    return shares


def _difference(config: GateConfig, mine: Answers, other: Answers | None) -> Interval | None:
    if other is None:
        return None
    return mine.beyond(other, num_resamples=config.num_resamples, level=config.confidence)


def _demands(
    config: GateConfig,
    asked: GateBenchmark,
    metric: str,
    mine: Answers,
    other: Answers | None,
    difference: Interval | None,
) -> Iterator[tuple[str, Verdict]]:
    """What is asked of a metric, and whether it holds. Without a champion nothing is compared."""
    alone = " (nothing to compare with)" if difference is None else ""
    num_queries = len(mine.hits_Q)
    num_discordant = int((mine.hits_Q != other.hits_Q).sum()) if other else 0
    if metric in asked.at_least:
        least = asked.at_least[metric]
        is_reached = float(mine.hits_Q.mean()) >= least
        yield f">= {100 * least:g}", "passed" if is_reached else "refused"
    if metric in asked.better:
        is_enough = num_discordant >= _MIN_DISCORDANT
        yield f"better{alone}", _verdict(difference, 0.0, is_enough=is_enough)
    if metric in asked.not_worse:
        least = -config.tolerance
        is_enough = num_queries * config.tolerance >= _RULE_OF_THREE
        yield (
            f"not worse by {-100 * least:g}{alone}",
            _verdict(difference, least, is_enough=is_enough),
        )


def _verdict(difference: Interval | None, least: float, *, is_enough: bool) -> Verdict:
    """Whether a difference is above `least`, as far as its interval tells.

    A bootstrap of few queries is too sure of itself: what passes must have been asked enough.
    """
    if difference is None:
        return "passed"
    if difference.low > least:
        return "passed" if is_enough else "undecided"
    return "refused" if difference.high <= least else "undecided"


def _percent(answers: Answers) -> str:
    return f"{100 * float(answers.hits_Q.mean()):.1f}"


def _ends(difference: Interval) -> str:
    return f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _check(name: str, demand: str, candidate: str, *, is_passed: bool) -> Check:
    verdict = "passed" if is_passed else "refused"
    return Check(name=name, demand=demand, candidate=candidate, verdict=verdict)
