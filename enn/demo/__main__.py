"""Trains small epistemic networks and shows what they know and don't know.

Draws regression.png, moons.png and digits.png, and prints a table of the networks on
handwritten digits of which one was never trained on.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

DATASETS = ("regression", "moons", "digits")
AGENTS = ("mlp", "ensemble", "epinet")
POSTERIORS = (
    "sghmc",
    "laplace",
    "linearised_laplace",
    "ensemble++",
    "vbll",
    "sngp",
    "swag",
    "multiswag",
    "temperature",
)
DEFAULT_STEPS = 1000
_MAX_SEED = 2**32 - 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m enn.demo",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("out"),
        metavar="DIR",
        help="folder for the pictures, made if need be",
    )
    parser.add_argument(
        "--seed", type=_integer(0, _MAX_SEED), default=0, help="fixes data and training"
    )
    parser.add_argument(
        "--steps",
        type=_integer(1),
        default=DEFAULT_STEPS,
        help="training steps of each network",
    )
    parser.add_argument(
        "--agents",
        nargs="+",
        choices=(*AGENTS, *POSTERIORS, "all"),
        default=AGENTS,
        metavar="NAME",
        help=f"networks to train, of {', '.join(AGENTS)}; on the digits alone also "
        f"{', '.join(POSTERIORS)}, or all",
    )
    parser.add_argument(
        "--dataset",
        choices=(*DATASETS, "all"),
        default="all",
        help="what to train on",
    )
    options = parser.parse_args(arguments)
    named = (*AGENTS, *POSTERIORS) if "all" in options.agents else options.agents
    options.agents = list(dict.fromkeys(named))
    chosen = [name for name in options.agents if name in POSTERIORS]
    if chosen and options.dataset != "digits":
        parser.error(f"argument --agents: {chosen[0]} needs --dataset digits")
    if chosen and options.steps < 2:
        parser.error(f"argument --steps: {chosen[0]} needs at least 2")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(
            f"argument --out: cannot make the folder {options.out}: {error.strerror}"
        )
    return options


def _integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Returns the argument type of an integer in a range."""
    valid = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum or (maximum is not None and number > maximum):
            raise argparse.ArgumentTypeError(
                f"must be an integer {valid}, got {text!r}"
            )
        return number

    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the demo; `arguments` default to the command line's."""
    options = _parse(arguments)
    # Help and errors above need not wait for JAX.
    from enn.demo import digits, pictures

    chosen = DATASETS if options.dataset == "all" else (options.dataset,)
    training = (options.agents, options.seed, options.steps)
    files = []
    for dataset in chosen:
        print(f"\n{dataset}", flush=True)
        if dataset == "regression":
            figure = pictures.draw_regression(*training)
        elif dataset == "moons":
            figure = pictures.draw_moons(*training)
        else:
            data = digits.load_digits(options.seed)
            results = [
                digits.evaluate(name, data, options.seed, options.steps)
                for name in options.agents
            ]
            print(f"\n{digits.format_table(results)}\n\n{digits.LEGEND}")
            figure = digits.draw(results, data)
        files.append(options.out / f"{dataset}.png")
        figure.savefig(files[-1], dpi=120)
    print("\npictures:")
    for file in files:
        print(f"  {file}")


if __name__ == "__main__":
    sys.exit(main())
