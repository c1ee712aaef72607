"""How a model is served, and what a request may ask of it."""

from __future__ import annotations

from dataclasses import dataclass

from lotlip.errors import ConfigError
from lotlip.images import MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where a model is served, by how many replicas, within which limits."""

    host: str = "127.0.0.1"
    """0.0.0.0 lets other machines in. There is no login: whoever reaches it may search."""
    port: int = 8300
    """A cluster's Ray Serve listens at one place only."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which the service may be asked; empty: any with host=0.0.0.0, else those of this
    machine to itself, so that a web page elsewhere can't have a browser ask under its own name."""
    num_replicas: int = 1
    """Processes with a model and an index each; Ray Serve shares the requests among them."""
    cpus_per_replica: float = 1.0
    """CPUs reserved for each, and threads of torch."""
    gpus_per_replica: float = 0.0
    """1 embeds on a GPU; 0 on the CPU, even where there are GPUs."""
    max_batch_items: int = 128
    """Texts, sentences and images that are embedded together, of requests that came while others
    were embedded. A request is not split: one with more makes a batch of its own."""
    max_queued_requests: int = 200
    """Further ones are answered with 503 at once."""
    max_body_mb: float = 20.0
    """Of a request, in 10^6 bytes; above it 413."""
    max_items: int = 64
    """Texts and images of one request to embed."""
    max_text_chars: int = 20_000
    """Of one text."""
    max_sentences: int = 64
    """Of a description to search with; further ones are searched with, but not told apart."""
    max_image_mp: float = 50.0
    """Width times height of an image, in 10^6 pixels, as its header tells: larger ones are never
    decoded."""
    max_hits: int = 100
    """Images that one search may ask for."""
    features: str = ""
    """Where features of the image tower are kept, s3:// or a folder that all replicas see; empty:
    in the lotlip home."""
    poll_s: float = 10.0
    """How often MLflow is asked whether the alias has moved."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} must be from 1 to 65535")
        for name in (
            *("num_replicas", "max_batch_items", "max_queued_requests"),
            *("max_items", "max_text_chars", "max_sentences", "max_hits"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be 1 or more")
        for name in ("cpus_per_replica", "max_body_mb", "max_image_mp", "poll_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        if self.gpus_per_replica < 0:
            raise ConfigError(f"gpus_per_replica={self.gpus_per_replica} must be 0 or more")
        if self.max_image_mp * 1e6 > MAX_PIXELS:
            raise ConfigError(f"max_image_mp={self.max_image_mp} is above {MAX_PIXELS / 1e6:g}")

    @property
    def hosts(self) -> list[str]:
        """Those of `allowed_hosts`, or what stands for them."""
        if self.allowed_hosts:
            return list(self.allowed_hosts)
        return ["127.0.0.1", "localhost"] if self.host in ("127.0.0.1", "localhost") else ["*"]
