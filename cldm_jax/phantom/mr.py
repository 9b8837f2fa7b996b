"""T1-weighted MR by the spoiled gradient echo equation. numpy and scipy only."""

import dataclasses

import numpy as np

from cldm_jax.phantom import tissue
from cldm_jax.phantom.fields import Grid, block_mean, blur, smooth_field, tissue_mean
from cldm_jax.phantom.pathology import WHITE_LESION_SIGNAL, Disease

BLUR_MM = 1.0
BIAS_MM = 55.0


@dataclasses.dataclass(frozen=True)
class MrScan:
    """tr_ms, te_ms, flip_deg: sequence; bias: SD of the log bias field; noise: Rician SD over white
    matter; gain: arbitrary units of white matter; jitter [2, 14]: factors on T1 and proton density.
    """

    tr_ms: float
    te_ms: float
    flip_deg: float
    bias: float
    noise: float
    gain: float
    jitter: np.ndarray


def draw_scan(rng: np.random.Generator, noise: bool) -> MrScan:
    tr, te, flip = rng.uniform(16, 25), rng.uniform(2.5, 5), rng.uniform(18, 28)
    bias, sd = rng.uniform(0.05, 0.20), rng.uniform(0.015, 0.04)
    gain = np.exp(rng.uniform(np.log(200), np.log(2000)))
    jitter = 1 + np.array([[0.05], [0.02]]) * rng.normal(size=(2, tissue.N_CODES))
    if not noise:
        return MrScan(20.0, 3.5, 23.0, 0.0, 0.0, 600.0, np.ones((2, tissue.N_CODES)))
    return MrScan(*map(float, (tr, te, flip, bias, sd, gain)), jitter)


def spoiled_gre(pd, t1_ms, t2_star_ms, tr_ms: float, te_ms: float, flip_deg: float):
    """PD sin a (1 - E1) / (1 - E1 cos a) exp(-TE/T2*), E1 = exp(-TR/T1) (Ernst and Anderson 1966)."""
    angle = np.deg2rad(flip_deg)
    e1 = np.exp(-tr_ms / t1_ms)
    steady = np.sin(angle) * (1 - e1) / (1 - e1 * np.cos(angle))
    return pd * steady * np.exp(-te_ms / t2_star_ms)


def signal_table(scan: MrScan) -> np.ndarray:
    """Signal per tissue code in units of white matter, float64 [14]."""
    t1, pd = tissue.T1 * scan.jitter[0], tissue.PROTON_DENSITY * scan.jitter[1]
    signal = spoiled_gre(pd, t1, tissue.T2_STAR, scan.tr_ms, scan.te_ms, scan.flip_deg)
    return signal / signal[tissue.WM]


def image(
    rng: np.random.Generator,
    disease: Disease,
    labels: np.ndarray,
    grid: Grid,
    factor: tuple[int, int, int],
    scan: MrScan,
) -> np.ndarray:
    """float32 magnitude image in arbitrary units; white-matter lesions are darker.

    labels: the fine labels to show (the disease's own, or its twin's with a thicker skull).
    """
    mr = tissue_mean(signal_table(scan), labels, factor)
    if disease.white is not None:
        mr -= (1 - WHITE_LESION_SIGNAL) * block_mean(disease.white, factor)
    mr = blur(mr, grid, BLUR_MM)
    if scan.bias:
        mr *= np.exp(scan.bias * smooth_field(rng, grid, BIAS_MM))
    if scan.noise:
        real, imaginary = (rng.standard_normal(grid.shape, np.float32) for _ in range(2))
        mr = np.hypot(mr + scan.noise * real, scan.noise * imaginary)
    return (scan.gain * mr).astype(np.float32)
