"""Losses: on a batch at one epistemic index, averages and sums of them, priors."""

from enn.losses.averaging import average_single_index_loss
from enn.losses.categorical_regression import (
    Cat2HotRegression,
    transform_to_2hot,
)
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
from enn.losses.prior_losses import (
    ClassificationPriorLoss,
    MatchingGaussianData,
    RegressionPriorLoss,
    generate_batched_forward_at_data,
    generate_batched_forward_at_data_with_state,
    make_gaussian_dataset,
)
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
from enn.losses.vi_losses import (
    get_analytical_diagonal_linear_model_prior_kl_fn,
    get_analytical_hyperflow_model_prior_kl_fn,
    get_analytical_linear_model_prior_kl_fn,
    get_awgn_loglike_fn,
    get_categorical_loglike_fn,
    get_sample_based_model_prior_kl_fn,
)
from enn.losses.weight_decay import (
    PredicateFn,
    add_l2_weight_decay,
    l2_weights_with_predicate,
)

__all__ = [
    "AccuracyErrorLoss",
    "Cat2HotRegression",
    "ClassificationPriorLoss",
    "CombineLossConfig",
    "CombineLossConfigNoState",
    "ElboLoss",
    "L2Loss",
    "L2LossWithBootstrap",
    "LogLikelihoodFn",
    "LossFnArray",
    "LossFnNoState",
    "LossOutputNoState",
    "MatchingGaussianData",
    "PredicateFn",
    "RegressionPriorLoss",
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
    "generate_batched_forward_at_data",
    "generate_batched_forward_at_data_with_state",
    "get_analytical_diagonal_linear_model_prior_kl_fn",
    "get_analytical_hyperflow_model_prior_kl_fn",
    "get_analytical_linear_model_prior_kl_fn",
    "get_awgn_loglike_fn",
    "get_categorical_loglike_fn",
    "get_log_likelihood_fn",
    "get_sample_based_model_prior_kl_fn",
    "l2_weights_with_predicate",
    "latent_kl_divergence",
    "latent_kl_fn",
    "make_gaussian_dataset",
    "transform_to_2hot",
    "wrap_loss_as_loss_no_state",
    "wrap_loss_no_state_as_loss",
    "wrap_single_loss_as_single_loss_no_state",
    "wrap_single_loss_no_state_as_single_loss",
    "xent_loss_with_custom_labels",
]
