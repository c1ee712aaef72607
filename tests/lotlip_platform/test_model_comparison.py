from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lotlip
from lotlip.data.manifest import read_manifest
from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError
from lotlip.evaluate.benchmarks import Benchmark, read_benchmark
from lotlip.export import save
from lotlip_platform.cli import main
from lotlip_platform.evaluate import evaluate_on
from lotlip_platform.model_comparison import Comparison, compare, comparison_page


@pytest.fixture(scope="module")
def other_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with other text features."""
    model = lotlip.load(model_folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.text_tower.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    folder = tmp_path_factory.mktemp("other") / "model"
    save(model, folder)
    return folder


@pytest.fixture(scope="module")
def compared(model_folder: Path, other_folder: Path, scenes_folder: Path) -> Comparison:
    (found,) = compare(str(model_folder), str(other_folder), {"scenes": str(scenes_folder)})
    return found


def test_both_get_the_figures_that_they_get_alone(
    compared: Comparison, model_folder: Path, other_folder: Path, scenes_folder: Path
) -> None:
    for folder, side in ((model_folder, "first"), (other_folder, "second")):
        report = evaluate_on(lotlip.load(folder), "scenes", str(scenes_folder))
        assert {row.metric: getattr(row, side) for row in compared.rows} == report.metrics
    for row in compared.rows:
        difference = row.first.value - row.second.value
        assert row.difference.value == pytest.approx(difference)
        assert row.difference.low <= difference + 1e-9
        assert row.difference.high >= difference - 1e-9


def test_the_queries_are_those_whose_ranks_differ_most(
    compared: Comparison, model_folder: Path, scenes_folder: Path
) -> None:
    ratios = [first / second for first, second in (query.ranks for query in compared.queries)]
    ahead = [ratio for ratio in ratios if ratio < 1]
    behind = [ratio for ratio in ratios if ratio > 1]
    assert (len(ahead), len(behind)) == (6, 6)
    assert ahead == sorted(ahead)
    assert behind == sorted(behind, reverse=True)
    assert ratios == ahead + behind
    store = FolderStore(scenes_folder)
    samples = read_benchmark(store, read_manifest(store), 0)
    _, seen = Benchmark("scenes", samples).meet(lotlip.load(model_folder))
    for query in compared.queries:
        index = next(i for i, sample in enumerate(samples) if sample.image == query.image)
        scores = seen.image_ND @ seen.long_ND[index]
        assert query.ranks[0] == 1 + int((scores > scores[index]).sum())
        first = query.hits[0]
        assert [hit.score for hit in first] == pytest.approx(scores.topk(4).values.tolist())
        assert any(hit.is_right for hit in first) == (query.ranks[0] <= 4)


def test_a_model_differs_from_itself_by_nothing(model_folder: Path, scenes_folder: Path) -> None:
    name = str(model_folder)
    (same,) = compare(name, name, {"retrieval": str(scenes_folder)}, num_samples=20)
    assert same.num_samples == 20
    assert same.queries == ()
    assert {(r.difference.low, r.difference.high) for r in same.rows} == {(0.0, 0.0)}
    assert "the same rank" in comparison_page([same])


def test_the_page_holds_all_it_shows(compared: Comparison) -> None:
    page = comparison_page([compared])
    assert page.count("<img") == 12 * (1 + 4 + 4)
    assert "http" not in page
    assert page.count("data:image/jpeg;base64,") == page.count("<img")


def test_the_command_writes_page_and_json(
    model_folder: Path,
    other_folder: Path,
    scenes_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "page.html"
    command = ["models", "compare", str(model_folder), str(other_folder), "--samples", "10"]
    command += ["--bench", f"retrieval={scenes_folder}", "--out", str(out)]
    assert main([*command, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["num_samples"] == 10
    assert {"metric", "first", "second", "difference"} == found["metrics"][0].keys()
    assert main(command) == 0
    assert "difference" in capsys.readouterr().out.splitlines()[1]
    assert out.read_text().startswith("<!doctype html>")


def test_an_unknown_benchmark_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="there is no benchmark nothing"):
        compare("nowhere", "nowhere", {"nothing": "x"})
