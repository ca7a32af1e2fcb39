"""Networks that are saved whole, and what a save may not do."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import checkpoints, networks
from enn.checkpoints import constructors, load_enn, save_pretrained
from tests.support import fast

pytest.importorskip("safetensors.numpy")

X = np.ones([2, 3], np.float32)
ARGUMENTS = {"output_sizes": (4, 2), "num_ensemble": np.int64(3), "seed": 7}
CONFIG = {"constructor": "MLPEnsembleMatchedPrior", "arguments": ARGUMENTS}


def make_scaled_ensemble(scale: float) -> networks.EnnArray:
    return networks.scale_enn_output(constructors.build(CONFIG), scale)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constructors, "_registered", {})
    checkpoints.register_constructor(make_scaled_ensemble)


def _predict(enn: Any, params: Any, state: Any) -> Any:
    return networks.parse_net_output(enn.apply(params, state, X, 1)[0])


@pytest.mark.slow
def test_a_fresh_process_predicts_the_same(tmp_path: pathlib.Path) -> None:
    params, state = fast.random_params(constructors.build(CONFIG), X)
    save_pretrained(tmp_path, params, state, config=CONFIG)
    program = (
        "import sys, numpy as np\n"
        "from enn import checkpoints, networks\n"
        "enn, params, state = checkpoints.load_enn(sys.argv[1])\n"
        "out, _ = enn.apply(params, state, np.ones([2, 3], np.float32), 1)\n"
        "print(np.asarray(networks.parse_net_output(out)).tolist())\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = _predict(networks.MLPEnsembleMatchedPrior(**ARGUMENTS), params, state)
    np.testing.assert_allclose(json.loads(printed), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {"constructor": "make_scaled_ensemble", "arguments": {"scale": 2.0}},
        {
            "constructor": "make_mlp_epinet",
            "arguments": {
                "output_sizes": [4, 2],
                "epinet_hiddens": [4],
                "index_dim": 3,
            },
        },
        {
            "constructor": "make_centered_enn",
            "arguments": {"enn": CONFIG, "x_train": jnp.arange(6.0).reshape(2, 3)},
        },
    ],
    ids=["ensemble", "registered", "epinet", "nested"],
)
def test_networks_come_back_with_their_predictions(
    config: Any, tmp_path: pathlib.Path
) -> None:
    enn = constructors.build(config)
    params, state = fast.random_params(enn, X)
    save_pretrained(tmp_path, params, state, inputs=X, config=config)
    layout = json.loads((tmp_path / "model.json").read_text())
    assert layout["probe"] is not None
    loaded, *variables = load_enn(tmp_path)
    index = enn.indexer(jax.random.key(1))
    out, expected = (
        networks.parse_net_output(one.apply(others[0], others[1], X, index)[0])
        for one, others in ((loaded, variables), (enn, (params, state)))
    )
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_a_constructor_that_builds_something_else_by_now(
    tmp_path: pathlib.Path,
) -> None:
    config = {"constructor": "make_scaled_ensemble", "arguments": {"scale": 2.0}}
    params, state = fast.random_params(constructors.build(CONFIG), X)
    save_pretrained(tmp_path, params, state, inputs=X, config=config)

    def make_scaled_ensemble(scale: float) -> networks.EnnArray:
        return networks.scale_enn_output(constructors.build(CONFIG), 1.1 * scale)

    checkpoints.register_constructor(make_scaled_ensemble)
    with pytest.raises(ValueError, match="is of another network"):
        load_enn(tmp_path)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("MLPDropoutENN", ValueError, r"config must be \{'constructor': name"),
        ({"constructor": "MLPDropoutENN"}, ValueError, r"config must be \{'constr"),
        ({"constructor": ["a"], "arguments": {}}, ValueError, "config must be"),
        ({"constructor": "a", "arguments": 3}, ValueError, "config must be"),
        *(
            ({"constructor": name, "arguments": {}}, ValueError, message)
            for name, message in [
                ("os.system", "'os.system' is neither of enn.networks nor registered"),
                ("__class__", "neither"),
                ("base", "neither"),
                ("epinet", "neither"),
                ("MLPDropoutENN", "MLPDropoutENN does not take .*output_sizes"),
            ]
        ),
        (
            {"constructor": "GaussianIndexer", "arguments": {"index_dim": 3}},
            TypeError,
            "must be an enn.base.EpistemicNetwork",
        ),
        (
            {"constructor": "from_flax", "arguments": {"module": print}},
            TypeError,
            "config must hold numbers, strings, .* got a builtin.*register a function",
        ),
    ],
)
def test_what_cannot_be_built_is_not_saved(
    config: Any, error: Any, message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(error, match=message):
        save_pretrained(tmp_path, {}, config=config)
    assert not list(tmp_path.iterdir())


def test_names_that_are_not_known_are_not_called(tmp_path: pathlib.Path) -> None:
    params, state = fast.random_params(constructors.build(CONFIG), X)
    save_pretrained(tmp_path, params, state, config=CONFIG)
    file = tmp_path / "model.json"
    layout = json.loads(file.read_text())
    call = {"constructor": "subprocess.run", "arguments": {"args": ["false"]}}
    nested = {"constructor": "make_scaled_ensemble", "arguments": {"scale": call}}
    for config in (call, nested):
        file.write_text(json.dumps(layout | {"config": config}))
        with pytest.raises(ValueError, match=r"'subprocess\.run' is neither"):
            load_enn(tmp_path)
    file.write_text(json.dumps(layout | {"config": None}))
    with pytest.raises(ValueError, match=r"saved without config: .*like=enn"):
        load_enn(tmp_path)


def test_what_cannot_be_registered() -> None:
    with pytest.raises(TypeError, match="with a name is needed"):
        checkpoints.register_constructor(lambda: None)
    with pytest.raises(TypeError, match="with a name is needed"):
        checkpoints.register_constructor(3)  # pyrefly: ignore[bad-specialization]

    def MLPDropoutENN() -> None: ...  # noqa: N802

    with pytest.raises(ValueError, match=r"is a name of enn\.networks"):
        checkpoints.register_constructor(MLPDropoutENN)
