import os
import pathlib

import pytest

# Read when Hugging Face's packages are imported.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory for image data sets; nothing is cached outside of it."""
    import datasets

    directory = tmp_path_factory.mktemp("store")
    datasets.config.HF_DATASETS_CACHE = str(directory / "cache")
    datasets.disable_progress_bars()
    return directory
