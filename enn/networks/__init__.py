"""Epistemic networks, and the pieces to build them from."""

from enn.networks import epinet
from enn.networks.adapters.from_equinox import from_equinox
from enn.networks.adapters.from_flax import from_flax
from enn.networks.adapters.from_nnx import from_nnx
from enn.networks.adapters.from_samples import from_network_samples, from_samples
from enn.networks.base import (
    ApplyArray,
    ApplyNoState,
    EnnArray,
    EnnNoState,
    EpistemicModule,
    InitArray,
    InitNoState,
    Output,
    OutputWithPrior,
)
from enn.networks.bbb import make_bbb_enn
from enn.networks.categorical_ensembles import (
    CategoricalRegressionMLP,
    CatMLPEnsembleGpPrior,
    CatMLPEnsembleMlpPrior,
    CatOutputWithPrior,
)
from enn.networks.combiners import combine_naive_enn, make_optimized_forward
from enn.networks.dropout import MLPDropoutENN
from enn.networks.einsum_mlp import (
    EnsembleMLP,
    make_einsum_ensemble_mlp_enn,
    make_ensemble_mlp_with_prior_enn,
    make_ensemble_prior,
)
from enn.networks.ensembles import (
    Ensemble,
    EnsembleWithState,
    MLPEnsembleMatchedPrior,
    combine_functions_choice_via_index,
    combine_functions_linear_in_index,
    make_ensemble,
    make_mlp_ensemble_prior_fns,
)
from enn.networks.epinet.expose_features import expose_features
from enn.networks.forwarders import EnnBatchFwd, make_batch_fwd, predict_at_indices
from enn.networks.gaussian_enn import GaussianNoiseEnn, GaussianNoiseMLP
from enn.networks.hypermodels import (
    MLPHypermodel,
    MLPHypermodelPriorIndependentLayers,
    MLPHypermodelWithHypermodelPrior,
    PriorMLPIndependentLayers,
    hypermodel_module,
)
from enn.networks.index_mlp import ConcatIndexMLP, IndexMLPEnn, IndexMLPWithGpPrior
from enn.networks.indexers import (
    CubeIndexer,
    DirichletIndexer,
    EnsembleIndexer,
    GaussianIndexer,
    GaussianWithUnitIndexer,
    PrngIndexer,
    ScaledGaussianIndexer,
    SignedAxisIndexer,
    SphereIndexer,
)
from enn.networks.last_layer.gaussian_last_layer import (
    GaussianLastLayer,
    Structure,
    apply_factor,
    factor_from_precision,
    marginal_variance,
)
from enn.networks.last_layer.linear_hyper_head import (
    LinearHyperHead,
    make_linear_hyper_mlp_enn,
)
from enn.networks.last_layer.sngp import (
    RandomFourierFeatures,
    SpectralLinear,
    make_sngp_mlp_enn,
)
from enn.networks.last_layer.vbll import VariationalLastLayer, make_vbll_mlp_enn
from enn.networks.lenet import EnsembleLeNet5ENN, LeNet5
from enn.networks.mlp import ExposedMLP, ProjectedMLP
from enn.networks.priors import (
    EnnNoStateWithAdditivePrior,
    EnnWithAdditivePrior,
    NetworkWithAdditivePrior,
    PriorFn,
    convert_enn_to_prior_fn,
    get_random_mlp_with_index,
    is_trainable,
    make_null_prior,
    make_random_feat_gp,
    trainable_mask,
)
from enn.networks.resnet.base import EnsembleResNetENN, resnet_model
from enn.networks.resnet.lib import (
    CanonicalResNets,
    ForwardFn,
    ResBlockV1,
    ResBlockV2,
    ResNet,
    ResNetConfig,
)
from enn.networks.resnet.priors import ResnetCnnPrior, ResnetMlpPrior
from enn.networks.utils import (
    add_learned_scale,
    epistemic_network_from_module,
    make_centered_enn,
    make_centered_enn_no_state,
    parse_net_output,
    parse_to_output_with_prior,
    scale_enn_output,
    scale_prior,
    wrap_apply_no_state_as_apply,
    wrap_enn_as_enn_no_state,
    wrap_enn_no_state_as_enn,
    wrap_init_no_state_as_init,
    wrap_net_fn_as_enn,
    wrap_stochastic_fn_as_enn,
    wrap_transformed_as_enn,
    wrap_transformed_as_enn_no_state,
)
from enn.networks.vgg import VGG, EnsembleVGGENN

__all__ = [
    "VGG",
    "ApplyArray",
    "ApplyNoState",
    "CanonicalResNets",
    "CatMLPEnsembleGpPrior",
    "CatMLPEnsembleMlpPrior",
    "CatOutputWithPrior",
    "CategoricalRegressionMLP",
    "ConcatIndexMLP",
    "CubeIndexer",
    "DirichletIndexer",
    "EnnArray",
    "EnnBatchFwd",
    "EnnNoState",
    "EnnNoStateWithAdditivePrior",
    "EnnWithAdditivePrior",
    "Ensemble",
    "EnsembleIndexer",
    "EnsembleLeNet5ENN",
    "EnsembleMLP",
    "EnsembleResNetENN",
    "EnsembleVGGENN",
    "EnsembleWithState",
    "EpistemicModule",
    "ExposedMLP",
    "ForwardFn",
    "GaussianIndexer",
    "GaussianLastLayer",
    "GaussianNoiseEnn",
    "GaussianNoiseMLP",
    "GaussianWithUnitIndexer",
    "IndexMLPEnn",
    "IndexMLPWithGpPrior",
    "InitArray",
    "InitNoState",
    "LeNet5",
    "LinearHyperHead",
    "MLPDropoutENN",
    "MLPEnsembleMatchedPrior",
    "MLPHypermodel",
    "MLPHypermodelPriorIndependentLayers",
    "MLPHypermodelWithHypermodelPrior",
    "NetworkWithAdditivePrior",
    "Output",
    "OutputWithPrior",
    "PriorFn",
    "PriorMLPIndependentLayers",
    "PrngIndexer",
    "ProjectedMLP",
    "RandomFourierFeatures",
    "ResBlockV1",
    "ResBlockV2",
    "ResNet",
    "ResNetConfig",
    "ResnetCnnPrior",
    "ResnetMlpPrior",
    "ScaledGaussianIndexer",
    "SignedAxisIndexer",
    "SpectralLinear",
    "SphereIndexer",
    "Structure",
    "VariationalLastLayer",
    "add_learned_scale",
    "apply_factor",
    "combine_functions_choice_via_index",
    "combine_functions_linear_in_index",
    "combine_naive_enn",
    "convert_enn_to_prior_fn",
    "epinet",
    "epistemic_network_from_module",
    "expose_features",
    "factor_from_precision",
    "from_equinox",
    "from_flax",
    "from_network_samples",
    "from_nnx",
    "from_samples",
    "get_random_mlp_with_index",
    "hypermodel_module",
    "is_trainable",
    "make_batch_fwd",
    "make_bbb_enn",
    "make_centered_enn",
    "make_centered_enn_no_state",
    "make_einsum_ensemble_mlp_enn",
    "make_ensemble",
    "make_ensemble_mlp_with_prior_enn",
    "make_ensemble_prior",
    "make_linear_hyper_mlp_enn",
    "make_mlp_ensemble_prior_fns",
    "make_null_prior",
    "make_optimized_forward",
    "make_random_feat_gp",
    "make_sngp_mlp_enn",
    "make_vbll_mlp_enn",
    "marginal_variance",
    "parse_net_output",
    "parse_to_output_with_prior",
    "predict_at_indices",
    "resnet_model",
    "scale_enn_output",
    "scale_prior",
    "trainable_mask",
    "wrap_apply_no_state_as_apply",
    "wrap_enn_as_enn_no_state",
    "wrap_enn_no_state_as_enn",
    "wrap_init_no_state_as_init",
    "wrap_net_fn_as_enn",
    "wrap_stochastic_fn_as_enn",
    "wrap_transformed_as_enn",
    "wrap_transformed_as_enn_no_state",
]


def __dir__() -> list[str]:
    return sorted(__all__)
