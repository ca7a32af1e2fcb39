"""Own data: pairs (x, y), early stopping, saved whole, predictions as a table."""

import numpy as np
import optax
import pandas as pd
from sklearn import datasets, model_selection

from enn import checkpoints, losses, metrics, networks, supervised, testing

ARGUMENTS: dict = {"output_sizes": [32, 2], "epinet_hiddens": [16], "index_dim": 8}


def run(folder: str, num_steps: int = 2000) -> tuple[int, pd.DataFrame]:
    """Returns when training stopped, and what the saved network predicts."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    split = model_selection.train_test_split(x, y, test_size=0.3, random_state=0)
    train_x, test_x, train_y, test_y = map(np.asarray, split)
    enn = networks.epinet.make_mlp_epinet(**ARGUMENTS)
    testing.check_enn(enn, train_x[:8])
    predict = networks.make_batch_fwd(enn, num_enn_samples=50)
    nll, history = metrics.make_nll_marginal_calculator(), []

    def still_improves(state: supervised.TrainingState, step: int) -> bool:
        logits = predict(state.params, state.network_state, test_x)
        history.append(float(nll(logits, test_y)))
        return min(history) in history[-5:]

    loss = losses.average_single_index_loss(losses.XentLoss(2), num_index_samples=8)
    experiment = supervised.Experiment(
        enn, loss, optax.adam(3e-3), (train_x, train_y), train_log_freq=None,
        callback=still_improves, callback_every=20,
    )  # fmt: skip
    experiment.train(num_steps)
    params, network_state, _ = experiment.state
    config = {"constructor": "make_mlp_epinet", "arguments": ARGUMENTS}
    checkpoints.save_pretrained(folder, params, network_state, inputs=x, config=config)

    enn, params, network_state = checkpoints.load_enn(folder)  # In any process.
    logits = networks.make_batch_fwd(enn, 50)(params, network_state, test_x)
    names = ["malignant", "benign"]
    frame = metrics.predictions_frame(logits, class_names=names)
    return experiment.step, frame.assign(label=np.take(names, test_y))


if __name__ == "__main__":
    step, frame = run("breast_cancer_epinet")
    print(f"Stopped after {step} steps. The least sure predictions:")
    print(frame.sort_values("total").tail().round(3).to_string())
