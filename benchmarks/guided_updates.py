"""Does the coordinate guide updates of the topology to better networks? On digits, by seeds.

    python benchmarks/guided_updates.py --candidates 1 3 10 --seeds 8

Every update draws so many random candidates, and takes for each layer the one with the longest
full-spectrum coordinate. With one candidate this is SET on the same schedule.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fullspectrum_ext import dynamic
from fullspectrum_ext.experiments import RunFolder, TrainConfig, train


def register(number: int) -> str:
    """Give guided updates with so many candidates a name for the driver."""

    @dynamic.register_method(f"guided:{number}")
    @dataclass(kw_only=True)
    class Guided(dynamic.RamanujanGuided):
        candidates: int = number

    return f"guided:{number}"


def main() -> None:
    """Train with each number of candidates, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--sparsity", type=float, default=0.98)
    arguments = parser.parse_args()
    for candidates in arguments.candidates:
        config = TrainConfig(
            methods=(register(candidates),),
            seeds=tuple(range(arguments.seeds)),
            sparsity=arguments.sparsity,
        )
        with tempfile.TemporaryDirectory() as folder:
            runs = train(config, RunFolder(Path(folder) / "run"))["runs"]
        accuracy = [100 * run["test_accuracy"] for run in runs]
        norm = statistics.mean(run["norm_after"] for run in runs)
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        print(
            f"{candidates:3} candidates: test accuracy {statistics.mean(accuracy):.2f} "
            f"± {spread:.2f} %, norm after training {norm:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
