"""Runs as a sweep records them, made up."""

import random
import zlib

ENVIRONMENT = {"torch": "2.13.0", "platform": "Linux", "cpu_features": "avx512", "gpu": None,
               "threads": 1, "git_commit": "0" * 40}  # fmt: skip
_TOTAL = 50200


def fake_run(
    method="snip", seed=0, sparsity=0.95, accuracy=0.9, *, model="mlp", data="digits",
    settings=None, environment=None, steps=0, **figures,
):  # fmt: skip
    """One entry of ``runs.jsonl``; figures win over made-up ones."""
    config = {
        "data": data, "model": model, "methods": [method], "seeds": [seed], "sparsity": sparsity,
        "epochs": 40, "batch_size": 64, "optimizer": "adamw", "learning_rate": 3e-3,
        "weight_decay": 1e-4, "candidates": 100, "threads": 1,
    }  # fmt: skip
    kept = _TOTAL if method == "dense" else round((1 - sparsity) * _TOTAL)
    run = {
        "method": method, "seed": seed, "kept": kept, "total": _TOTAL,
        "sparsity": 1 - kept / _TOTAL, "test_accuracy": accuracy, "test_loss": 0.3,
        "norm_before": 2.0, "norm_after": 2.5, "anchor_distance": 0.7,
        "pruning_seconds": 1.0, "training_seconds": 2.0,
    }  # fmt: skip
    history = {"epoch": [1, 2], "train_loss": [1.0, 0.5], "validation_accuracy": [0.5, 0.9]}
    run |= figures
    if steps:
        way = (run["norm_after"] - run["norm_before"]) / (steps - 1)
        history["coordinate_steps"] = list(range(steps))
        history["coordinate_norms"] = [run["norm_before"] + way * step for step in range(steps)]
    return {
        "config": config | (settings or {}),
        "environment": ENVIRONMENT | (environment or {}),
        "run": run,
        "history": history,
    }


def fake_sweep(methods, sparsities, seeds, *, models=("mlp",), steps=0, data="digits"):
    """A grid of runs: sparser networks are worse and nearer, methods differ a little."""
    runs = []
    for model in models:
        for sparsity in sparsities:
            for method in methods:
                for seed in range(seeds):
                    draw = random.Random(zlib.crc32(f"{model}{sparsity}{method}{seed}".encode()))
                    skill = zlib.crc32(method.removeprefix("pags:").encode()) % 97 / 97
                    density = 1.0 if method == "dense" else 1 - sparsity
                    loss = (0.02 + 0.05 * skill) * density**-0.45
                    norm = (2 + skill) * density**0.2 + 0.1 * draw.random()
                    pags = 0.3 * method.startswith("pags")
                    runs.append(fake_run(
                        method, seed, sparsity, max(0.1, 0.97 - loss + draw.gauss(0, 0.008)),
                        model=model, data=data, steps=steps,
                        norm_before=norm + pags, norm_after=1.3 * norm + pags,
                        anchor_distance=0.4 * norm + draw.gauss(0, 0.05),
                        pruning_seconds=0.1 + 3 * pags + draw.random(),
                        training_seconds=5 + draw.random(), held_bytes=int(1e6 / (1.05 - sparsity)),
                        layer_densities={"a": density * (1 - skill / 2), "b": density + skill / 20},
                    ))  # fmt: skip
    return runs
