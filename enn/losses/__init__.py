"""Losses: on a batch at one epistemic index, averages and sums of them, priors."""

from enn.losses.averaging import average_single_index_loss
from enn.losses.combine import (
    CombineLossConfig,
    combine_losses,
    combine_losses_as_metric,
    combine_single_index_losses_as_metric,
)
from enn.losses.no_state import (
    CombineLossConfigNoState,
    add_data_noise_no_state,
    add_l2_weight_decay_no_state,
    average_single_index_loss_no_state,
    combine_losses_no_state,
    combine_losses_no_state_as_metric,
    combine_single_index_losses_no_state_as_metric,
    wrap_loss_as_loss_no_state,
    wrap_loss_no_state_as_loss,
    wrap_single_loss_as_single_loss_no_state,
    wrap_single_loss_no_state_as_single_loss,
)
from enn.losses.noise import add_data_noise
from enn.losses.protocols import (
    LossFnArray,
    LossFnNoState,
    LossOutputNoState,
    SingleLossFn,
    SingleLossFnArray,
    SingleLossFnNoState,
)
from enn.losses.single_index import (
    AccuracyErrorLoss,
    ElboLoss,
    L2Loss,
    L2LossWithBootstrap,
    VaeLoss,
    XentLoss,
    xent_loss_with_custom_labels,
)
from enn.losses.vae_losses import (
    LogLikelihoodFn,
    binary_log_likelihood,
    gaussian_log_likelihood,
    get_log_likelihood_fn,
    latent_kl_divergence,
    latent_kl_fn,
)
from enn.losses.weight_decay import (
    PredicateFn,
    add_l2_weight_decay,
    l2_weights_with_predicate,
)

__all__ = [
    "AccuracyErrorLoss",
    "CombineLossConfig",
    "CombineLossConfigNoState",
    "ElboLoss",
    "L2Loss",
    "L2LossWithBootstrap",
    "LogLikelihoodFn",
    "LossFnArray",
    "LossFnNoState",
    "LossOutputNoState",
    "PredicateFn",
    "SingleLossFn",
    "SingleLossFnArray",
    "SingleLossFnNoState",
    "VaeLoss",
    "XentLoss",
    "add_data_noise",
    "add_data_noise_no_state",
    "add_l2_weight_decay",
    "add_l2_weight_decay_no_state",
    "average_single_index_loss",
    "average_single_index_loss_no_state",
    "binary_log_likelihood",
    "combine_losses",
    "combine_losses_as_metric",
    "combine_losses_no_state",
    "combine_losses_no_state_as_metric",
    "combine_single_index_losses_as_metric",
    "combine_single_index_losses_no_state_as_metric",
    "gaussian_log_likelihood",
    "get_log_likelihood_fn",
    "l2_weights_with_predicate",
    "latent_kl_divergence",
    "latent_kl_fn",
    "wrap_loss_as_loss_no_state",
    "wrap_loss_no_state_as_loss",
    "wrap_single_loss_as_single_loss_no_state",
    "wrap_single_loss_no_state_as_single_loss",
    "xent_loss_with_custom_labels",
]
