"""What was saved goes on as if it had never stopped; what is broken is refused."""

import itertools
import json
import pathlib
import shutil
import sys
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import base, networks, supervised
from enn.datasets import ArrayBatch
from enn.supervised import saving
from tests.support import tiny

NUM_STEPS = 50


def noisy_adam() -> Any:
    """An optimiser with a typed random key in its state."""
    return optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.adam(1e-2))


def copy(experiment: Any, path: pathlib.Path, step: int) -> None:
    """Adds a finished save of `experiment` to `path`, whoever saved there before."""
    experiment.step = step
    experiment.save(path.with_name("elsewhere"))
    (saved,) = path.with_name("elsewhere").iterdir()
    number = 1 + len(list(path.glob("*")))
    path.mkdir(exist_ok=True)
    saved.rename(path / f"{number:06d}-step-{step}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Saves of steps 10 and 20; not to be changed."""
    path = tmp_path_factory.mktemp("saved")
    tiny.make_experiment().train(20, save_dir=path, save_every=10)
    return path


@pytest.fixture
def copied(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return shutil.copytree(saved, tmp_path / "copied")


@pytest.mark.slow
@pytest.mark.strict
@pytest.mark.parametrize(
    "make_experiment",
    [
        lambda: tiny.make_experiment(optimizer=noisy_adam()),
        tiny.make_multiloss_experiment,
    ],
)
def test_resumed_training_is_bit_identical(
    make_experiment: Any, tmp_path: pathlib.Path
) -> None:
    whole = make_experiment()
    whole.train(NUM_STEPS)
    first = make_experiment()
    first.train(31, save_dir=tmp_path, save_every=13)
    assert supervised.saved_steps(tmp_path) == [13, 26, 31]
    tiny.assert_identical(
        first.logger.rows, [r for r in whole.logger.rows if r["step"] <= 31]
    )
    resumed = make_experiment()
    for step, start in ((13, 13), (None, 31)):
        resumed.restore(tmp_path, step)
        assert resumed.step == start
        resumed.logger.rows.clear()
        resumed.train(NUM_STEPS - start)
        tiny.assert_same_training(resumed, whole)
        tiny.assert_identical(
            resumed.logger.rows, [r for r in whole.logger.rows if r["step"] > start]
        )


def test_the_layout_of_a_save_is_that_of_version_1(saved: pathlib.Path) -> None:
    """Or else earlier saves would no longer restore."""
    save = saved / "000002-step-20"
    assert {path.name for path in save.iterdir()} >= {"about", "state", "digests.json"}
    about = json.loads((save / "about" / "metadata").read_text())
    assert about["step"] == 20
    assert len(about["key"]) == 2
    (positions,) = map(json.loads, about["data"])
    assert json.loads(positions["training data set 0"])["position"] == 21 * 5
    assert json.loads(positions["evaluation data set 'test'"])["position"] == 5
    assert about["arrays"] == {
        "params['linear']['w']": "float32[3, 1]",
        "network_state['calls']['count']": "int32[]",
        "opt_state[0].count": "int32[]",
        "opt_state[0].mu['linear']['w']": "float32[3, 1]",
        "opt_state[0].nu['linear']['w']": "float32[3, 1]",
    }


def test_an_experiment_that_trained_goes_back(saved: pathlib.Path) -> None:
    experiment, expected = tiny.make_experiment(), tiny.make_experiment()
    experiment.train(7)
    experiment.restore(saved, step=10)
    experiment.train(5)
    expected.train(15)
    tiny.assert_same_training(experiment, expected)


@pytest.mark.slow
def test_grain_data_resume_where_they_stood(tmp_path: pathlib.Path) -> None:
    read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    data = tiny.make_data()
    rows = [ArrayBatch(x=x, y=y) for x, y in zip(data.x, data.y, strict=True)]

    def make_dataset() -> Any:
        dataset = grain.MapDataset.source(rows).shuffle(seed=0).repeat().batch(5)
        return iter(dataset.to_iter_dataset(read_options))

    def make_loader() -> Any:
        sampler = grain.samplers.IndexSampler(12, shuffle=True, seed=0, num_epochs=9)
        return iter(
            grain.DataLoader(
                data_source=rows,
                sampler=sampler,
                operations=[grain.transforms.Batch(5)],
                read_options=read_options,
            )
        )

    # The second kind tells its position as bytes.
    for name, make in (("dataset", make_dataset), ("loader", make_loader)):
        first, resumed = (tiny.make_experiment(make()) for _ in range(2))
        first.train(9, save_dir=tmp_path / name)
        resumed.restore(tmp_path / name)
        for experiment in (first, resumed):
            experiment.train(6)
        tiny.assert_same_training(resumed, first)


def test_data_without_a_position(tmp_path: pathlib.Path) -> None:
    def make_experiment() -> Any:
        return tiny.make_experiment(itertools.chain(tiny.make_batches()))

    first, resumed = make_experiment(), make_experiment()
    with pytest.warns(UserWarning, match="training data set 0, a chain, cannot rep"):
        first.train(3, save_dir=tmp_path)
    with pytest.raises(ValueError, match=r"0, a chain, .*restore\(\.\.\., data=False"):
        resumed.restore(tmp_path)
    assert resumed.step == 0
    resumed.restore(tmp_path, data=False)
    tiny.assert_same_training(resumed, first)


def test_data_of_another_seed_are_refused_and_none_moves(saved: pathlib.Path) -> None:
    train, other = tiny.make_batches(), tiny.make_batches(seed=5)
    experiment = tiny.make_experiment(train, eval_datasets={"test": other})
    before = train.state()
    with pytest.raises(ValueError, match=r"data set 'test' does not take .* seed=1"):
        experiment.restore(saved)
    assert train.state() == before
    assert experiment.step == 0


def test_positions_that_were_not_saved(saved: pathlib.Path) -> None:
    datasets = {"test": tiny.make_batches(seed=1), "new": tiny.make_batches()}
    experiment = tiny.make_experiment(eval_datasets=datasets)
    with pytest.raises(ValueError, match="no position for evaluation data set 'new'"):
        experiment.restore(saved)
    texts = saving.dump_positions({"data": datasets["new"]})
    with pytest.raises(ValueError, match=r"Saved by 2 processes, .* there are 1 now"):
        saving.restore_positions({"data": datasets["new"]}, texts * 2)


def test_positions_that_are_not_json(tmp_path: pathlib.Path) -> None:
    class Odd(type(itertools.chain())):  # pyrefly: ignore[invalid-inheritance]
        def state(self) -> Any:
            return {1, 2}

        def restore(self, state: Any) -> None:
            del state

    experiment = tiny.make_experiment(Odd(tiny.make_batches()))
    with pytest.raises(TypeError, match=r"training data set 0 .* got set"):
        experiment.save(tmp_path)


def test_the_last_saves_are_kept(tmp_path: pathlib.Path) -> None:
    experiment = tiny.make_experiment()
    experiment.train(6, save_dir=tmp_path, save_every=2, keep=2)
    assert supervised.saved_steps(tmp_path) == [4, 6]
    experiment.save(tmp_path, keep=2)
    assert supervised.saved_steps(tmp_path) == [4, 6]
    experiment.restore(tmp_path, step=4)
    experiment.train(1, save_dir=tmp_path)
    assert supervised.saved_steps(tmp_path) == [4, 6, 5]
    experiment.save(tmp_path, keep=1)
    assert supervised.saved_steps(tmp_path) == [5]
    assert len(list(tmp_path.iterdir())) == 1


def test_saves_left_behind_by_going_back_are_removed_first(
    tmp_path: pathlib.Path,
) -> None:
    experiment = tiny.make_experiment()
    experiment.train(30, save_dir=tmp_path, save_every=10)
    experiment.restore(tmp_path, step=10)
    experiment.train(2, save_dir=tmp_path, keep=2)
    # 20 and 30 are of the run that was given up, though they are newer than 10.
    assert supervised.saved_steps(tmp_path) == [10, 12]


def test_the_same_step_is_saved_again_after_going_back(tmp_path: pathlib.Path) -> None:
    experiment = tiny.make_experiment()
    experiment.train(20, save_dir=tmp_path, save_every=10)
    expected = experiment.state
    experiment.restore(tmp_path, step=10)
    experiment.train(10, save_dir=tmp_path)
    assert supervised.saved_steps(tmp_path) == [10, 20]
    tiny.assert_identical(experiment.state, expected)
    again = tiny.make_experiment()
    again.restore(tmp_path)
    tiny.assert_identical(again.state, expected)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["unsafe_rbg", "threefry2x32"])
def test_keys_of_another_generator_are_refused_before_anything_moves(
    other: str, tmp_path: pathlib.Path
) -> None:
    with jax.default_prng_impl("rbg"):
        first = tiny.make_experiment()
        first.train(2, save_dir=tmp_path)
    with jax.default_prng_impl(other):
        data = tiny.make_batches()
        experiment = tiny.make_experiment(data)
        state, rng = experiment.state, experiment.rng.internal_state
        position = data.state()
        with pytest.raises(ValueError, match=f"random keys of rbg.*of {other}"):
            experiment.restore(tmp_path)
        assert data.state() == position
        tiny.assert_identical(experiment.state, state)
        tiny.assert_identical(experiment.rng.internal_state, rng)
    with jax.default_prng_impl("rbg"):
        same = tiny.make_experiment()
        same.restore(tmp_path)
        tiny.assert_same_training(same, first)


def _counts_keys(impl: str) -> Any:
    """A network that keeps a typed random key in its state."""
    enn = tiny.make_enn()

    def apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
        out, calls = enn.apply(params, state, inputs, index)
        return out, calls | {"rng": {"key": jax.random.split(state["rng"]["key"])[0]}}

    def init(key: Any, inputs: Any, index: Any) -> Any:
        params, state = enn.init(key, inputs, index)
        return params, state | {"rng": {"key": jax.random.key(5, impl=impl)}}

    return base.EpistemicNetwork(apply, init, enn.indexer)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_in_the_network_state_are_saved(
    impl: str, tmp_path: pathlib.Path
) -> None:
    whole, resumed = (tiny.make_experiment(enn=_counts_keys(impl)) for _ in range(2))
    whole.train(4, save_dir=tmp_path)
    whole.train(4)
    resumed.restore(tmp_path)
    resumed.train(4)
    tiny.assert_same_training(resumed, whole)
    other = tiny.make_experiment(
        enn=_counts_keys("rbg" if impl != "rbg" else "unsafe_rbg")
    )
    with pytest.raises(ValueError, match=f"{impl}.*network_state"):
        other.restore(tmp_path)


@pytest.mark.slow
def test_optimiser_state_that_changes_its_type_is_saved(tmp_path: pathlib.Path) -> None:
    def make() -> supervised.Experiment:
        return tiny.make_experiment(
            enn=tiny.make_bfloat16_enn(),
            optimizer=optax.rmsprop(jnp.float32(1e-3), momentum=0.9),
        )

    whole, resumed = make(), make()
    whole.train(5, save_dir=tmp_path)
    whole.train(5)
    resumed.restore(tmp_path)
    resumed.train(5)
    tiny.assert_same_training(resumed, whole)


def test_saves_of_another_run_are_not_touched(copied: pathlib.Path) -> None:
    experiment = tiny.make_experiment()
    for save in (experiment.save, lambda path: experiment.train(5, save_dir=path)):
        with pytest.raises(
            ValueError, match="saves of another run, the last of step 2"
        ):
            save(copied)
    assert experiment.step == 0
    experiment.restore(copied)
    experiment.train(5, save_dir=copied)
    assert supervised.saved_steps(copied) == [10, 20, 25]


def test_unfinished_saves_are_not_picked_up(copied: pathlib.Path) -> None:
    latest = copied / "000002-step-20"
    shutil.copytree(latest, copied / "000003-step-30.orbax-checkpoint-tmp-1")
    (latest / "digests.json").unlink()
    assert supervised.saved_steps(copied) == [10]
    experiment = tiny.make_experiment()
    experiment.restore(copied)
    assert experiment.step == 10
    experiment.train(1, save_dir=copied)
    assert sorted(path.name for path in copied.iterdir()) == [
        "000001-step-10",
        "000002-step-11",
    ]
    for path in copied.glob("*/digests.json"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no finished save"):
        experiment.restore(copied)
    assert supervised.saved_steps(copied / "nowhere") == []


@pytest.mark.slow
def test_damage_of_any_file_is_seen(copied: pathlib.Path) -> None:
    experiment = tiny.make_experiment()
    latest = copied / "000002-step-20"
    files = [path for path in latest.rglob("*") if path.is_file()]
    assert len(files) > 5
    hint = r"The save of step 10 is good: restore\(path, step=10\)"
    for file in files:
        good = file.read_bytes()
        middle = len(good) // 2
        bad = bytes([good[middle] ^ 1])
        file.write_bytes(good[:middle] + bad + good[middle + 1 :])
        with pytest.raises(ValueError, match=f"of step 20 .* is damaged: .*{hint}"):
            experiment.restore(copied)
        file.write_bytes(good)
    (array,) = latest.glob("state/d/*")
    for damage in (lambda: array.write_bytes(b""), array.unlink):
        damage()
        with pytest.raises(ValueError, match=f"is damaged: .*{array.name}.*{hint}"):
            experiment.restore(copied)
    for digests in ("[]", "null"):  # JSON, but no digests: was no ValueError.
        (latest / "digests.json").write_text(digests)
        with pytest.raises(ValueError, match=f"digests.json holds no digests.*{hint}"):
            experiment.restore(copied)
    assert experiment.step == 0
    experiment.restore(copied, step=10)
    assert experiment.step == 10
    (copied / "000001-step-10" / "about" / "metadata").unlink()
    with pytest.raises(ValueError, match="No other save there can be restored either"):
        experiment.restore(copied)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"enn": tiny.make_enn(2)},
            r"params\['linear'\]\['w'\] is float\d+\[3, 2\] there and float\d+\[3, 1\]",
        ),
        (
            {"enn": tiny.make_enn(name="affine")},
            r"params\['linear'\]\['w'\] is absent there and float\d+\[3, 1\]",
        ),
        (
            {"optimizer": optax.sgd(0.1)},
            r"opt_state\[0\].count is absent there and int32\[\] in",
        ),
    ],
)
def test_another_architecture_is_refused(
    other: Any, message: str, tmp_path: pathlib.Path
) -> None:
    experiment, path = tiny.make_experiment(), tmp_path / "mixed"
    copy(tiny.make_experiment(), path, step=3)
    copy(tiny.make_experiment(**other), path, step=4)
    before = experiment.state
    with pytest.raises(ValueError, match=message + r".*restore\(path, step=3\)"):
        experiment.restore(path)
    assert experiment.state is before
    experiment.restore(path, step=3)
    assert experiment.step == 3


def _with_prior(seed: int) -> Any:
    prior = networks.make_random_feat_gp(3, 1, 4, jax.random.key(seed))
    enn = tiny.make_enn()

    def apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
        out, state = enn.apply(params, state, inputs, index)
        return out + prior(inputs), state

    return base.EpistemicNetwork(apply, enn.init, enn.indexer)


@pytest.mark.slow
def test_a_network_of_other_priors_is_refused(tmp_path: pathlib.Path) -> None:
    """It has the same parameters and predicts something else with them."""
    first = tiny.make_experiment(enn=_with_prior(3))
    first.train(4, save_dir=tmp_path)
    same = tiny.make_experiment(enn=_with_prior(3), init_x=np.zeros([1, 3]))
    same.restore(tmp_path)
    tiny.assert_same_training(same, first)
    data = tiny.make_batches()
    other = tiny.make_experiment(data, enn=_with_prior(7))
    position = data.state()
    with pytest.raises(
        ValueError, match=r"step 4 .* is of another network: .*prior functions, with"
    ):
        other.restore(tmp_path)
    assert (other.step, data.state()) == (0, position)


def test_a_network_that_takes_only_its_own_data_is_saved(
    tmp_path: pathlib.Path,
) -> None:
    enn = tiny.make_enn()

    def apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
        if len(inputs) == 4:
            raise ValueError("four rows are too few")
        return enn.apply(params, state, inputs, index)

    def make() -> Any:
        picky = base.EpistemicNetwork(apply, enn.init, enn.indexer)
        return tiny.make_experiment(enn=picky)

    first, resumed = make(), make()
    with pytest.warns(
        UserWarning, match="does not run at a few made-up inputs.* too few"
    ):
        first.train(4, save_dir=tmp_path)
    with pytest.warns(UserWarning, match="could not be checked"):
        resumed.restore(tmp_path)
    tiny.assert_same_training(resumed, first)


def test_saves_of_earlier_versions_restore_with_a_warning(
    copied: pathlib.Path,
) -> None:
    save = copied / "000002-step-20"
    about = save / "about" / "metadata"
    content = json.loads(about.read_text())
    del content["probe"]
    about.write_text(json.dumps(content))
    (save / "digests.json").write_text(json.dumps(saving._digests(save)))
    experiment = tiny.make_experiment()
    with pytest.warns(UserWarning, match="prior functions .* could not be checked"):
        experiment.restore(copied)
    assert experiment.step == 20


def test_arrays_are_placed_as_the_experiments(saved: pathlib.Path) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ["data"])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed, plain = tiny.make_experiment(), tiny.make_experiment()
    placed.state = jax.device_put(placed.state, sharding)
    for experiment in (placed, plain):
        experiment.restore(saved)
    for leaf in jax.tree.leaves(placed.state):
        assert leaf.sharding == sharding
    assert not any(leaf.committed for leaf in jax.tree.leaves(plain.state))


def test_steps_that_are_not_there(saved: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="holds no save of step 7, but of 10, 20"):
        tiny.make_experiment().restore(saved, step=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_every": 5}, "save_every needs save_dir"),
        ({"save_every": 0, "save_dir": "x"}, "save_every must be an integer >= 1"),
        ({"save_dir": "x", "keep": 0}, "keep must be an integer >= 1, got 0"),
    ],
)
def test_arguments_out_of_range(arguments: Any, message: str) -> None:
    experiment = tiny.make_experiment()
    with pytest.raises(ValueError, match=message):
        experiment.train(1, **arguments)
    assert experiment.step == 0


def test_keys_reserved_ahead_are_not_saved(tmp_path: pathlib.Path) -> None:
    experiment = tiny.make_experiment()
    experiment.rng.reserve(2)
    with pytest.raises(ValueError, match="reserved ahead"):
        experiment.save(tmp_path)


def test_a_missing_extra_shows_before_training(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    experiment = tiny.make_experiment()
    with pytest.raises(ImportError, match=r'pip install "enn\[checkpoints\]"'):
        experiment.train(1, save_dir=tmp_path)
    assert experiment.step == 0
