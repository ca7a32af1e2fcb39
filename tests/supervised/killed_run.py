"""A run that saves and logs: `python -m tests.supervised.killed_run DIRECTORY LOG`."""

import sys

from enn.loggers import JsonLinesLogger
from tests import conftest  # noqa: F401  # The same compilation as in the tests.
from tests.support import tiny

if __name__ == "__main__":
    experiment = tiny.make_experiment()
    experiment.logger = JsonLinesLogger(sys.argv[2])
    experiment.train(10**6, save_dir=sys.argv[1], save_every=3)
