"""Sharing saved networks on the Hugging Face hub, with a card of what they are."""

import json
import os
import pathlib
import platform
from importlib import metadata
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, _extras, _metadata, metrics
from enn.checkpoints.hub_downloads import ARRAYS, TREE, check_repository
from enn.checkpoints.pretrained import load_enn
from enn.networks.forwarders import make_batch_fwd

_ROWS_AT_ONCE = 1000
_PACKAGES = ("jax", "jaxlib", "dm-haiku", "numpy")


def push_to_hub(
    path: str | os.PathLike[str],
    repository: str,
    *,
    test_data: tuple[chex.Array, chex.Array] | None = None,
    num_enn_samples: int = 100,
    tau: int = 10,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Puts a network that `save_pretrained` saved on the Hugging Face hub.

    Anyone then reads it by `load_enn("owner/name")`. With it goes a model card: how the
    network is built, the random stream and the versions with which its predictions
    were just reproduced, and its scores, measured here. These lines take an account
    there, and are not run as a test:

        save_pretrained("my_model", params, state, enn=enn, config=config)
        push_to_hub("my_model", "me/my_model", test_data=(x_test, y_test))

    >>> from enn import checkpoints
    >>> checkpoints.push_to_hub("my_model", "me/my_model")
    Traceback (most recent call last):
        ...
    FileNotFoundError: There is no folder my_model: call save_pretrained.

    Args:
      path: the folder, saved with `config`.
      repository: `owner/name`, made where there is none.
      test_data: inputs `[num_rows, ...]` and classes `[num_rows]` that the network was
        not trained on, in random order. Marginal and dyadic joint negative
        log-likelihood are measured on them; see
        `enn.metrics.make_nll_polyadic_calculator`.
      num_enn_samples: number of epistemic indices to measure at.
      tau: number of labels of a joint prediction.
      private: whether a new repository is hidden; by default as its owner's are.
      token: access token; by default that of `hf auth login`.

    Returns:
      The commit, a `revision` for `load_enn` that nobody can change.

    Raises:
      ImportError: without huggingface_hub, which the extra `hub` installs.
      OSError: if the folder is not there, or the hub refuses or cannot be reached.
      ValueError: for another name of a repository; as `load_enn` raises it.
    """
    check_repository(repository)
    hub = _extras.require("huggingface_hub", "hub")
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: call save_pretrained.")
    enn, params, state = load_enn(folder)
    scores = {}
    if test_data is not None:
        forward = make_batch_fwd(enn, num_enn_samples)
        scores = _measure(lambda x: forward(params, state, x), *test_data, tau)
        scores |= {
            "test rows": np.size(test_data[1]),
            "epistemic indices": num_enn_samples,
        }
    card = _make_card(repository, json.loads((folder / TREE).read_bytes()), scores)
    api = hub.HfApi(token=token, library_name="enn")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(
            repository,
            [
                hub.CommitOperationAdd("README.md", card.encode()),
                *(hub.CommitOperationAdd(n, str(folder / n)) for n in (TREE, ARRAYS)),
            ],
            commit_message="Save a network of enn",
        )
    except (hub.errors.HTTPError, hub.errors.OfflineModeIsEnabled) as error:
        raise OSError(
            f"{repository} was not pushed; `hf auth login`, or a token of an owner, "
            f"lets you: {error}"
        ) from error
    return done.oid


def _measure(forward: Any, inputs: Any, labels: Any, tau: int) -> dict[str, float]:
    """Returns marginal and joint scores, in nats, and the accuracy."""
    labels = np.asarray(labels).reshape(-1, 1)
    starts = range(0, len(labels), _ROWS_AT_ONCE)
    parts = [forward(inputs[start : start + _ROWS_AT_ONCE]) for start in starts]
    logits = jnp.concatenate(parts, axis=1)
    _checks.class_labels(labels, logits.shape[-1])
    joint = metrics.make_nll_polyadic_calculator(tau, key=jax.random.key(0))
    values = {
        "accuracy": metrics.make_accuracy_calculator()(logits, labels),
        "marginal NLL (nats)": metrics.make_nll_marginal_calculator()(logits, labels),
        f"joint NLL (nats, dyadic, τ = {tau})": joint(logits, labels),
    }
    return {name: float(value) for name, value in values.items()}


def _make_card(repository: str, layout: dict[str, Any], scores: dict[str, Any]) -> str:
    """Returns the model card, in Markdown."""
    versions = {"python": platform.python_version(), "enn": _metadata.__version__}
    versions |= {name: metadata.version(name) for name in _PACKAGES}
    stream = {
        "generator": jax.config.jax_default_prng_impl,  # pyrefly: ignore[missing-attribute]
        "jax_threefry_partitionable": jax.config.jax_threefry_partitionable,  # pyrefly: ignore[missing-attribute]
    }
    checked = "Nothing was saved that could tell whether they are."
    if layout["probe"] is not None:
        checked = "Loading checks a few predictions that tell whether they are."
    measured = "Not measured."
    if scores:
        measured = _table(
            {n: f"{v:.4f}" if isinstance(v, float) else v for n, v in scores.items()}
        )
    return f"""---
library_name: enn
tags:
- epistemic-neural-network
- uncertainty
---

# {repository}

An epistemic neural network.

```python
from enn import checkpoints

enn, params, state = checkpoints.load_enn("{repository}")
```

The files hold arrays and JSON, no code. Give `revision` the hash of a commit for a
network that stays as it is.

## Scores

{measured}

## Configuration

```json
{json.dumps(layout["config"], indent=2)}
```

## Random stream

Prior functions and whatever else is drawn from a seed, and is not among the arrays, are
those of this stream. {checked}

{_table(stream)}

## Versions

{_table(versions)}
"""


def _table(entries: dict[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in entries.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
