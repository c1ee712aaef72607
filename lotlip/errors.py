"""The errors a user can cause. Only the command line turns them into text and an exit code.

A message says what is wrong, where (key, shard, uri) and what to do. All of them survive pickling,
since they travel from Ray workers to the driver.
"""


class LotlipError(Exception):
    """Base of every error that is the user's to mend; its text is one clear line."""


class ConfigError(LotlipError):
    """A configuration value is wrong, unknown or contradicts another."""


class UnknownKeyError(ConfigError):
    """There is no configuration key of that name."""


class DataError(LotlipError):
    """Shards, manifests, samples or the store that holds them are missing or damaged."""


class CheckpointError(LotlipError):
    """A model folder or a checkpoint is missing, damaged or does not fit the model."""


class TrackingError(LotlipError):
    """The MLflow server refused, is unreachable or lacks what was asked for."""


class RefusedError(LotlipError):
    """A gate did its work, and refused."""


class ClusterError(LotlipError):
    """The Ray cluster is unreachable or cannot give the resources asked for."""
