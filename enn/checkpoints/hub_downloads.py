"""Saved networks in repositories of the Hugging Face hub, fetched when they are read.

Of a repository two files are read, of one commit: never code, and nothing that could
hold any. They stay in the hub's cache, where they are found without a network too.
"""

import os
import pathlib
import re
from typing import Any

from enn import _extras
from enn.checkpoints.downloads import is_offline

ARRAYS, TREE = "model.safetensors", "model.json"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def check_repository(name: str) -> str:
    """Returns the name of a repository.

    Raises:
      ValueError: unless it is `owner/name`, of letters, digits and `-_.` alone.
    """
    if not isinstance(name, str) or not _is_repository(name):
        raise ValueError(f"A repository is named 'owner/name', got {name!r}.")
    return name


def find_saved(path: str | os.PathLike[str], revision: str | None) -> pathlib.Path:
    """Returns the folder of a saved network, from the hub if need be.

    Args:
      path: a folder, or `owner/name` where there is no such folder.
      revision: commit, tag or branch of the repository; a folder has none.

    Raises:
      ConnectionError: if the hub cannot be reached and the cache lacks the network.
      FileNotFoundError: if there is neither a folder nor a repository, the repository
        is hidden or holds no saved network, or there is no such revision.
      ImportError: without huggingface_hub, which the extra `hub` installs.
      ValueError: for a folder with a revision.
    """
    folder = pathlib.Path(path)
    if folder.exists() or not (isinstance(path, str) and _is_repository(path)):
        if revision is not None:
            raise ValueError(
                f"revision belongs to a repository 'owner/name', got {path!r}."
            )
        return folder
    hub = _extras.require("huggingface_hub", "hub")
    tree = _fetch(hub, path, TREE, revision)
    # The commit is the name of the folder: both files are of the same.
    return _fetch(hub, path, ARRAYS, tree.parent.name).parent


def _is_repository(name: str) -> bool:
    is_path = ".." in name or name.endswith((".git", ".", "-"))
    return _NAME.fullmatch(name) is not None and not is_path


def _fetch(hub: Any, name: str, file: str, revision: str | None) -> pathlib.Path:
    errors = hub.errors
    at = "" if revision is None else f" at the revision {revision!r}"
    try:
        fetched = hub.hf_hub_download(
            name,
            file,
            revision=revision,
            library_name="enn",
            local_files_only=is_offline(),
        )
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is neither a folder nor a repository of the hub that you may "
            "read; `hf auth login` for those that are private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} has no revision {revision!r}.") from error
    except errors.RemoteEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{name} has no {file}{at}: it was not saved by save_pretrained."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ConnectionError(
            f"{name}{at} is neither a folder nor in the hub's cache, and the hub could "
            "not be reached, or must not be (ENN_OFFLINE, HF_HUB_OFFLINE)."
        ) from error
    return pathlib.Path(fetched)
