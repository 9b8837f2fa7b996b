"""The pictures a report shows of scored images: best, median and worst person."""

import numpy as np

from cldm_jax.metrics import aggregate
from cldm_jax.report.labels import method_label
from cldm_jax.runs.readouts import Entrant
from cldm_jax.scoring import coverage
from cldm_jax.scoring.scorer import HEADLINE, Scorer, is_cldm


def make_gallery(scorer: Scorer, entrants: list[Entrant], readouts, drawers) -> dict:
    """Best, median and worst patient by PSNR of the CLDM's best mode; the middle scored slice.

    Where the CLDM does not make a target, the first method that does decides. drawers: of
    `coverage.open_calibrated`: only the other methods are shown with the SD of their read-outs.
    """
    shown = {}
    for code, target in scorer.names.items():
        able = [e for e in entrants if target in e.runs]
        if not able:
            continue
        main = next((e for e in able if is_cldm(e)), able[0])
        chosen_by = f"{main.name}:{scorer.best_mode(main, main.first.method.predict, target)}"
        picks = aggregate.pick_cases(scorer.scores, chosen_by, target, metric=HEADLINE)
        volumes = {
            scorer.prepared.index.people[s].id: (s, int(rows[len(rows) // 2]))
            for s, c, rows in scorer.patients()
            if c == code
        }
        cases = [(role, patient, *volumes[patient]) for role, patient in picks.items()]
        shown[target] = (code, {e.name for e in able}, chosen_by, cases)
    rows = sorted({row for _, _, _, cases in shown.values() for *_, row in cases})
    maps = coverage.sd_maps(scorer, drawers, np.array(rows, int))
    gallery = {}
    for target, (code, names, chosen_by, cases) in shown.items():
        own = {key: readout for key, readout in readouts.items() if key[0] in names}
        gallery[target] = {
            **scorer.config.windows[target].to_dict(),
            "chosen_by": chosen_by,
            "rule": f"PSNR of {method_label(chosen_by)}",
            "cases": [
                {
                    "role": role,
                    "patient": patient,
                    **_case(scorer, own, code, subject, row, maps),
                }
                for role, patient, subject, row in cases
            ],
        }
    return gallery


def _case(scorer: Scorer, readouts, code: int, subject: int, row: int, maps) -> dict:
    """The pictures of one slice: source, real, every read-out and its SD, in metric units."""
    predictions, sds = {}, {}
    zero = scorer.units(code, subject, np.float32(0))  # units are affine in model range
    mapped = {key: by_row[row] for key, by_row in maps.items() if row in by_row}
    calibrated = {key.partition(":")[0] for key in mapped}
    for (name, mode), readout in readouts.items():
        key = f"{name}:{mode}"
        predictions[key] = scorer.units(code, subject, readout.images[row])
        sd = mapped.get(key)
        if sd is None and readout.sd is not None and name not in calibrated:
            sd = readout.sd[row]
        if sd is not None:
            sds[key] = scorer.units(code, subject, sd) - zero
    return {
        "slice": int(scorer.keys["slice"][row]),
        "source": scorer.rows.read(np.array([row]))["source"][0, ..., 0],
        "real": scorer.units(code, subject, scorer.real[row]),
        "mask": scorer.masks[row],
        "predictions": predictions,
        "sd": sds,
        "calibrated": bool(calibrated),
    }
