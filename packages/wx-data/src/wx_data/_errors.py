"""The two errors of the package: something is wrong with a source, or with a store."""


class SourceError(ValueError):
    """A source lacks, misnames or mismeasures something that was asked of it."""


class StoreError(ValueError):
    """A training store or forecast store is incomplete, damaged or of another make."""
