"""What a run pays, between saves, for being able to survive and to be looked at."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import ray

from lotlip.data.pipeline import DataConfig, Source
from lotlip.data.store import FolderStore
from lotlip.model import LoTLIP
from lotlip.train.loop import LoopConfig, Step, train_steps
from lotlip.train.optim import OptimConfig, make_optimizer
from lotlip.train.state import TrainState
from lotlip_platform.mailbox import Mailbox
from lotlip_platform.pulse import Pulse
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.step_log import Meter, Records
from lotlip_platform.teller import Teller


def bare(model: LoTLIP, source: Source, num_samples: int) -> None:
    """An epoch of the loop, and nothing else."""
    for _ in steps(model, source, num_samples):
        pass


@contextmanager
def watched() -> Iterator[Mailbox]:
    """A driver's mailbox in a real Ray."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield ray.remote(num_cpus=0)(Mailbox).remote()
    ray.shutdown()


def as_a_worker(model: LoTLIP, source: Source, num_samples: int, mailbox: Mailbox) -> None:
    """The same as a worker of a run does it: traced, measured, told, with signs of life."""
    send = Teller(mailbox)
    with tempfile.TemporaryDirectory() as folder, Pulse(send, 0).told() as pulse:
        records = Records(RunFolder(FolderStore(folder)), "nobody", send)
        meter = Meter(send, records, peak_flops=0.0)
        pulse.at("data")
        for step in steps(model, replace(source, trace=True), num_samples, send):
            pulse.stepped(step.own_s, step.step_s)
            meter.take(step)
            records.take(step)
            if step.step % 10 == 0:
                meter.log(step)
            pulse.at("data")


def steps(
    model: LoTLIP, source: Source, num_samples: int, send: Teller | None = None
) -> Iterator[Step]:
    """The steps of so many samples, in which a worker asks whether it is to stop."""
    optim = OptimConfig()
    return train_steps(
        TrainState(model, make_optimizer(model, optim)),
        source,
        loop=LoopConfig(num_samples=num_samples, global_batch=source.global_batch),
        optim=optim,
        data=DataConfig(train=source.store.uri, order=source.order),
        to_stop=send.to_stop if send else lambda: False,
    )
