"""Time to import enn beside the time to import what it is built on.

    python benchmarks/import_time.py [--repeats 11]

Both from stored bytecode, which `pip install` makes for what it installs; the first
import, which is not counted, makes it for a checkout.
"""

import argparse
import os
import subprocess
import sys

from _timing import median_seconds

STATEMENTS = {
    "jax, haiku, optax, chex": "import jax, haiku, optax, chex",
    "enn": "import enn.networks, enn.losses, enn.supervised, enn.metrics",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()

    environment = {
        k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"
    }

    def run(statement: str) -> None:
        command = [sys.executable, "-c", statement]
        subprocess.run(command, check=True, env=environment)

    seconds = median_seconds(
        {name: lambda s=s: run(s) for name, s in STATEMENTS.items()}, args.repeats
    )
    reference = seconds["jax, haiku, optax, chex"]
    for name, value in seconds.items():
        print(f"import {name:25} {value:6.2f} s  {value / reference:5.2f}x")


if __name__ == "__main__":
    main()
