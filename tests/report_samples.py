"""Summaries, score rows and galleries for the tests of the report."""

import numpy as np

from cldm_jax.metrics.protocol import PROTOCOLS

PEOPLE = {"n_patients": 5, "n_independent": 5}
KEYS = ("unet:predict", "ldm:onestep", "ldm:mean4")


def entry(mean, sd):
    return {
        "mean": mean,
        "sd": sd,
        "median": mean + sd / 10,
        "iqr": [mean - sd / 2, mean + sd / 2],
        "ci95": [mean - sd / 3, mean + sd / 3],
        "n": 5,
        "n_undefined": 0,
    }


def make_summary(targets=("ct", "mr")):
    """As it stands in a summary.json."""
    rows, references, tests = [], [], []
    for target in targets:
        mae = (60.0, 7.0) if target == "ct" else (0.06, 0.007)
        for i, key in enumerate(KEYS):
            method, mode = key.split(":")
            rows.append(
                {
                    "method": method,
                    "mode": mode,
                    "target": target,
                    **PEOPLE,
                    "psnr": entry(24.123 + i, 1.234),
                    "ssim": entry(0.8123 + i / 50, 0.0456),
                    "mae": entry(mae[0] - i / 1e3, mae[1]),
                    "sharpness": entry(0.31 + i / 10, 0.05),
                    "psnr_whole": entry(29.876 + i, 1.1),
                    "params": 547_123,
                    "train_steps": 1429,
                    "train_seconds": 4000.0,
                    "train_cpu_seconds": 7000.0,
                    "network_evaluations": 1 + 19 * (mode == "mean4"),
                    "seconds_per_slice": 0.0213,
                }
            )
        references += [
            {"name": name, "target": target, **PEOPLE, "psnr": entry(mean, 0.8)}
            for name, mean in (
                ("floor_mean_image", 20.9),
                ("ae_ceiling", 37.77),
                ("reacquired_ceiling", 31.5),
            )
        ]
        tests.append(
            {
                "a": "ldm:mean4",
                "b": "unet:predict",
                "target": target,
                "metric": "psnr",
                "n": 5,
                "mean_diff": 0.4321,
                "ci95": [0.1234, 0.6543],
                "p_wilcoxon": 0.0625,
                "rank_biserial": 0.8,
                "n_undefined": 0,
                "p_equivalent": 0.4,
                "p_holm": 0.125,
            }
        )
    return {
        "protocol": PROTOCOLS["cldm"].to_json(),
        "data": {
            "name": "unit",
            "contrast": "simulated",
            "fingerprint": "f" * 64,
            "split_hash": "s" * 64,
            "train_patients": 10,
            "test_patients": 5,
            "slices": 20,
        },
        "rows": rows,
        "references": references,
        "chosen": {t: {"ldm": "mean4", "unet": "predict"} for t in targets},
        "tests": tests,
        "controls": [
            {"name": "source_shuffle", "target": "ct", "psnr": {"mean": 19.87}, "drop_db": 4.56},
            {"name": "class_flip", "accuracy": 0.5, "accuracy_real": 1.0},
        ],
        "spread": [],
        "points": [],
        "learning": {},
        "seeds": [],
        "notes": ["One training seed."],
        "run": {
            "command": "python -m cldm_jax.main --config=configs/eval.py",
            "preset": "tiny",
            "hardware": {"backend": "cpu", "devices": ["one", "two"]},
            "seed": 7,
            "git": "abc1234",
            "versions": {"jax": "9.9.9"},
        },
    }


def make_scores(targets=("ct", "mr"), people=5):
    rng = np.random.default_rng(0)
    return [
        {
            "patient": f"sub-{p}",
            "group": f"head-{p}",
            "split": "test",
            "method": key.split(":")[0],
            "mode": key.split(":")[1],
            "target": target,
            "metric": metric,
            "value": float(rng.normal(25, 1)),
            "n_slices": 4,
        }
        for target in targets
        for key in KEYS
        for metric in ("psnr", "mae")
        for p in range(people)
    ]


def make_case(role, keys=KEYS, size=48):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] / size - 0.5
    mask = np.hypot(x, y) < 0.4
    real = np.where(mask, 0.6, 0.0)
    return {
        "role": role,
        "patient": f"sub-{role}",
        "slice": 12,
        "source": rng.uniform(-1, 1, real.shape),
        "real": real,
        "mask": mask,
        "predictions": {k: real + rng.normal(0, 0.1, real.shape) for k in keys},
        "sd": {"ldm:mean4": np.abs(rng.normal(0, 0.1, real.shape))} if "ldm:mean4" in keys else {},
    }


WINDOWS = {"units": "fraction", "window": (0.0, 1.0), "error_window": 0.3}


def make_gallery(targets=("ct", "mr"), keys=KEYS, roles=("best", "median", "worst")):
    units = {"ct": "HU", "mr": "fraction"}
    return {
        t: {**WINDOWS, "units": units[t], "cases": [make_case(r, keys) for r in roles]}
        for t in targets
    }
