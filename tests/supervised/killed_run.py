"""A run that saves all the time: `python -m tests.supervised.killed_run DIRECTORY`."""

import sys

from tests import conftest  # noqa: F401  # The same compilation as in the tests.
from tests.support import tiny

if __name__ == "__main__":
    tiny.make_experiment().train(10**6, save_dir=sys.argv[1], save_every=3)
