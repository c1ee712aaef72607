"""The config of `lotlip data ingest`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lotlip.errors import ConfigError
from lotlip.ingest.rows import PLAIN_FORMATS, ColumnMap, Format
from lotlip_platform.downloads import DownloadConfig

URLS = "url"


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Captions, images, and where they go together."""

    format: Format
    """Of the caption files."""
    source: str
    """A caption file, or a folder of them."""
    images: str
    """`url`: each row names an address. Else where images lie: a folder or S3 prefix of files, or
    FOLDER/*.tar for those in tars."""
    target: str
    """Where the data set is written; nothing else may be there."""
    columns: dict[str, str] = field(default_factory=dict)
    """Of formats csv, jsonl and parquet, what is in which column: image=url, long.llava=text ..."""
    strip: str = ""
    """What the images' paths begin with, and is no part of them where they lie."""
    shard_size: int = 1000
    """Rows of a shard; those that are rejected leave it smaller."""
    longest_side_px: int = 0
    """Larger images are made smaller; 0: kept as they are."""
    origin: str = ""
    """Recorded as the samples' `source`, where rows don't tell one: laion-400m."""
    licence: str = ""
    """Recorded as the samples' `licence`, where rows don't tell one."""
    download: DownloadConfig = field(default_factory=DownloadConfig)
    """How images are fetched from the web."""

    def __post_init__(self) -> None:
        if (self.format in PLAIN_FORMATS) != bool(self.columns):
            what = "must be told" if self.format in PLAIN_FORMATS else "are known"
            raise ConfigError(
                f"columns of format {self.format} {what}; they are of "
                f"{', '.join(PLAIN_FORMATS)}, as in --columns image=url,short=caption"
            )
        if self.columns:
            ColumnMap(self.columns)
        if self.shard_size < 1:
            raise ConfigError(f"shard_size={self.shard_size} must be 1 or more")
        if self.longest_side_px < 0:
            raise ConfigError(f"longest_side_px={self.longest_side_px} must be 0 or more")

    @property
    def images_folder(self) -> str:
        """Where files or tars lie."""
        return self.images.rpartition("/")[0] or "." if self.has_tars else self.images

    @property
    def has_tars(self) -> bool:
        return self.images.endswith(".tar")

    @property
    def column_map(self) -> ColumnMap | None:
        return ColumnMap(self.columns) if self.columns else None
