"""Splits of a data set."""

import enum


class SizedSplit(enum.Enum):
    """Splits by their number of examples, which are their values."""

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return self.value
