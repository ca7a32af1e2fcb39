"""Predictions as a table: what is predicted for each row, and how surely."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import chex
import numpy as np

from enn import _checks, _extras
from enn.metrics.likelihood import marginal_probs
from enn.metrics.mixture import ParseFn, calculate_mixture_quantiles
from enn.metrics.uncertainty import mutual_information, predictive_entropy

if TYPE_CHECKING:
    import pandas as pd


def predictions_frame(
    outputs: chex.Array,
    parse: ParseFn | None = None,
    *,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    class_names: Sequence[Any] | None = None,
    index: Any = None,
) -> "pd.DataFrame":
    """Returns predictions as a pandas table, one row for each input.

    Of logits: the likeliest `class`, its marginal probability and those of the others,
    `p(name)`, and in nats the `epistemic` uncertainty, the mutual information of label
    and index, and the `total` one, the entropy of the marginal prediction.

    Of regression, with `parse`: the `mean` and `quantiles` of the mixture over indices,
    such as `q0.05`, and as standard deviations in units of the target the `epistemic`
    uncertainty, that of the means, and the `total` one with the noise:
    Var = Varₛ[μₛ] + Eₛ[σₛ²]. Columns of several outputs end in their number: `mean_1`.

    The two parts: Depeweg et al., 2018, https://arxiv.org/abs/1710.07283.

    >>> import numpy as np
    >>> from enn import metrics
    >>> logits = np.log([[[0.9, 0.1]], [[0.5, 0.5]]])  # Two indices, one row.
    >>> frame = metrics.predictions_frame(logits, class_names=["cat", "dog"])
    >>> print(frame.round(2).to_string(index=False))
    class  p(cat)  p(dog)  epistemic  total
      cat     0.7     0.3        0.1   0.61

    Args:
      outputs: of several indices, `[num_enn_samples, batch, ...]`, as
        `enn.networks.make_batch_fwd` gives them: logits, unless `parse` is given.
      parse: turns outputs into means and standard deviations: the method `parse` of
        `enn.losses.GaussianNLLLoss`, or `enn.metrics.make_constant_std(noise_std)`.
      quantiles: levels in (0, 1), for regression.
      class_names: one for each class; by default its number.
      index: index of the table, one entry for each row.

    Raises:
      ImportError: without pandas.
      ValueError: for outputs of another shape, another number of names, or a level out
        of range.
    """
    pandas = _extras.require("pandas", "plots")
    _checks.shape(
        "outputs", outputs, (None, None, None), "[num_enn_samples, batch, num_outputs]"
    )
    if parse is None:
        columns = _classification(outputs, class_names)
    else:
        columns = _regression(outputs, parse, quantiles)
    return pandas.DataFrame(columns, index=index)


def _classification(outputs: Any, names: Sequence[Any] | None) -> dict[str, Any]:
    probs = np.asarray(marginal_probs(outputs))
    names = range(probs.shape[1]) if names is None else names
    if len(names) != probs.shape[1]:
        raise ValueError(
            f"class_names must have {probs.shape[1]} entries, got {len(names)}."
        )
    return {
        "class": [names[i] for i in probs.argmax(axis=1)],
        **{f"p({name})": probs[:, i] for i, name in enumerate(names)},
        "epistemic": np.asarray(mutual_information(outputs)),
        "total": np.asarray(predictive_entropy(outputs)),
    }


def _regression(
    outputs: Any, parse: ParseFn, levels: Sequence[float]
) -> dict[str, Any]:
    means, stds = (np.asarray(values, np.float64) for values in parse(outputs))
    epistemic = means.std(axis=0)
    columns = {
        "mean": means.mean(axis=0),
        **{
            f"q{level:g}": np.asarray(values)
            for level, values in zip(
                levels,
                calculate_mixture_quantiles(outputs, np.asarray(levels), parse),
                strict=True,
            )
        },
        "epistemic": epistemic,
        "total": np.sqrt(epistemic**2 + np.square(stds).mean(axis=0)),
    }
    num_outputs = means.shape[-1]
    return {
        name if num_outputs == 1 else f"{name}_{k}": values[:, k]
        for k in range(num_outputs)
        for name, values in columns.items()
    }
