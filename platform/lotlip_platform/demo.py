"""`lotlip demo`: the whole story on this machine, on real parts.

Scenes in S3, LoTLIP and two other arms trained on two Ray workers, evaluated on held-out scenes,
registered in MLflow and searched with. All that is done already is reused, so a second run, or one
after an interruption, goes on from there.
"""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lotlip.data.manifest import read_manifest
from lotlip.data.shards import read_samples
from lotlip.errors import ConfigError
from lotlip.evaluate.benchmarks import Report, long_caption
from lotlip.evaluate.figures import arms_chart
from lotlip.evaluate.retrieval import Interval
from lotlip_platform.config import load_config
from lotlip_platform.dataset_views import show
from lotlip_platform.datasets import Split, make_scenes
from lotlip_platform.evaluate import evaluate_on, table
from lotlip_platform.local_services import home, services
from lotlip_platform.progress import TrainDisplay, bar, say
from lotlip_platform.registry import fetch
from lotlip_platform.search import match_table, search, search_sheet
from lotlip_platform.storage import open_store
from lotlip_platform.train import TrainResult, train
from lotlip_platform.train_config import TrainConfig

_BUCKET = "s3://lotlip"
_SEARCHED = 3  # the held-out scene whose long caption is searched with


@dataclass(frozen=True)
class _Arm:
    """One way to train, beside which the others are judged."""

    title: str
    overrides: tuple[str, ...]


_ARMS = {
    "lotlip": _Arm("LoTLIP, m = 2", ()),
    "short-only": _Arm(
        "short captions only", ("captions.num_sub_captions=0", "tracking.registered_model=")
    ),
    "control": _Arm(
        "m = 0, long weighted 3x",
        (
            "model.text.num_corner_tokens=0",
            "train.long_weight=3",
            "tracking.registered_model=",
        ),
    ),
}
"""The control has as much weight on the long caption as m = 2 gives it: three features of four."""
_ROWS = {
    "class_zero_shot_top1": "zero-shot class",
    "colour_class_zero_shot_top1": "zero-shot colour x class",
    "short_text_to_image_r1": "short text to image, R@1",
    "short_image_to_text_r1": "image to short text, R@1",
    "long_text_to_image_r1": "long text to image, R@1",
    "long_image_to_text_r1": "image to long text, R@1",
}


def demo(num_samples: int) -> None:
    """Run the story and print its end: a table, pictures, addresses.

    `num_samples` scenes to train on, seen twice; a twentieth as many to validate on and a tenth to
    test on. Raises: LotlipError.
    """
    began = time.monotonic()
    pictures = home() / "demo"
    root = f"{_BUCKET}/demo-{num_samples}"
    sizes: dict[Split, int] = {
        "train": num_samples,
        "validation": num_samples // 20,
        "test": num_samples // 10,
    }
    say("[2/5] scenes into S3")
    for split, size in sizes.items():
        with bar(f"scenes, {split}", "sample") as shown:
            make_scenes(f"{root}/{split}", num_samples=size, split=split, on_progress=shown.show)
    _write(pictures / "samples.png", show(f"{root}/train", num_samples=12))
    say("[3/5] three arms on two Ray workers each")
    trained = {name: _train(name, arm, root, sizes) for name, arm in _ARMS.items()}
    say("[4/5] evaluation on held-out scenes")
    results = {arm.title: _rows(_evaluate(name, root)) for name, arm in _ARMS.items()}
    chart = arms_chart(results, title=f"{sizes['test']:,} held-out scenes")
    _write(pictures / "arms.png", chart)
    say("[5/5] a search with the model of LoTLIP")
    found = _search(_address(trained["lotlip"]), f"{root}/test", pictures / "search.png")
    _print_end(results, found, pictures)
    print(_next(trained["lotlip"], f"{root}/test"))
    print(f"\n{time.monotonic() - began:.0f} s; end the services with lotlip down")


def _train(name: str, arm: _Arm, root: str, sizes: dict[Split, int]) -> TrainResult:
    """Train an arm as `lotlip train` does."""
    overrides = (
        f"name={name}",
        f"store={root}/runs",
        f"data.train={root}/train",
        f"data.features={root}/features",
        f"train.num_samples={2 * sizes['train']}",
        f"eval.data={root}/validation",
        f"eval.num_samples={sizes['validation']}",
        *arm.overrides,
    )
    config = load_config(TrainConfig, "train/scenes", overrides)
    display = TrainDisplay(arm.title, config.train.num_steps)
    try:
        return train(config, display, command="lotlip demo")
    finally:
        display.close()


def _evaluate(name: str, root: str) -> Report:
    return evaluate_on(fetch(f"{root}/runs/{name}/model"), "scenes", f"{root}/test")


def _rows(report: Report) -> dict[str, Interval]:
    return {title: report.metrics[metric] for metric, title in _ROWS.items()}


def _address(result: TrainResult) -> str:
    """Where to fetch a trained model: MLflow, or its run folder while MLflow hasn't taken it."""
    if result.model_uri:
        return result.model_uri
    exported = f"{result.folder}/model"
    say(f"the model is not registered in MLflow yet, see lotlip track sync: taking {exported}")
    return exported


def _write(path: Path, content: bytes) -> None:
    """Raises: ConfigError if the picture can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; set LOTLIP_HOME") from error


def _search(model_uri: str, uri: str, picture: Path) -> str:
    """Look for the picture of a held-out long caption among all; the caption and what it found."""
    store = open_store(uri)
    wanted = next(islice(read_samples(store, read_manifest(store)), _SEARCHED, None))
    text = long_caption(wanted)
    matches = search(fetch(model_uri), uri, text, num_hits=6)
    sheet = search_sheet(text, matches, heading=f"{model_uri} in {uri}", right=wanted.key)
    _write(picture, sheet)
    return f"{textwrap.fill(text, 100)}\n(the caption of {wanted.key})\n\n{match_table(matches)}"


def _next(result: TrainResult, test: str) -> str:
    """What to do with the model that was registered; empty if there is none yet."""
    if not result.model_uri:
        return ""
    name, version = result.model_uri.removeprefix("models:/").split("/")
    return (
        f"\nsearch yourself: lotlip serve {result.model_uri} --index {test}\n"
        f"next: lotlip models promote {name} --version {version} "
        '--because "reads long texts" \\\n'
        f"          --gate promote/default benchmarks.scenes.data={test}"
    )


def _print_end(results: dict[str, dict[str, Interval]], found: str, pictures: Path) -> None:
    print(f"\n{table(results)}\n\n{found}\n")
    for name in ("samples.png", "arms.png", "search.png"):
        print(f"picture  {pictures / name}")
    for service in services().values():
        print(f"{service.name:8} {service.url}")
