"""Simulated cohort of PET, CT and T1w MR volumes (NIfTI) with truth.

Command:  .venv/bin/python -m cldm_jax.main --config=configs/simulate.py:quick --workdir=runs/cohort
          .venv/bin/python -m cldm_jax.main --config=configs/simulate.py:cpu --workdir=runs/heads \
              --config.labels=LABELS --config.variants_per_head=8
Hardware: CPU only.
Time:     CPU seconds per person: tiny 0.3, quick 1, cpu 2, a6000 and multi 12 (measured on a shared
          two-core machine, table in docs/phantom.md; whole a6000 and multi cohorts: not measured).
"""

import ml_collections

from configs import common

# What a preset changes; everything else is in get_config.
PRESETS = {
    "tiny": dict(n_subjects=8, shape=(32, 40, 6), spacing_mm=(6.0, 6.0, 8.0), workers=0),
    "quick": dict(n_subjects=40, shape=(96, 112, 24), spacing_mm=(2.0, 2.0, 4.0), workers=2),
    "cpu": dict(n_subjects=60, shape=(96, 112, 48), spacing_mm=(2.0, 2.0, 2.0), workers=2),
    "cpu1mm": dict(n_subjects=60, shape=(192, 224, 48), spacing_mm=(1.0, 1.0, 2.0), workers=2),
    "a6000": dict(n_subjects=200, shape=(256, 256, 120), spacing_mm=(1.0, 1.0, 1.2), workers=8),
    "multi": dict(n_subjects=200, shape=(256, 256, 120), spacing_mm=(1.0, 1.0, 1.2), workers=16),
}


def randomised() -> dict:
    """What mode `randomised` draws, each on its own: (low, high), both the same to fix it; a share from
    0 to 1; or shares of words. Factors are drawn uniformly in their logarithm.

    Beside each setting: what it is; its source. "Chosen": plausible, and wide enough for the few real
    PETs that were looked at; no measurement.
    """
    return {
        "person": {  # drawn once for all PETs of a person
            # nod, degrees; chosen: a head rest tilts heads, and few PETs are turned to a template
            "pitch_deg": (-20.0, 20.0),
            "turn_deg": (-10.0, 10.0),  # roll and yaw; SynthSeg (Billot 2023) has 15
            "shift_mm": (-9.0, 9.0),  # sideways and forwards, of the field of view; chosen
            "height_mm": (-16.0, 16.0),  # up and down: cuts vertex or neck off all images; chosen
            "size": (0.89, 1.1),  # of the head; adults' head breadth has an SD of 4 %
            "axis_size": (0.95, 1.05),  # of each axis beside it; chosen
            "slant": (-0.03, 0.03),  # shear; SynthSeg has 0.012
            "warp_mm": (2.5, 4.0),  # SD of the smooth deformation (26 mm); SynthSeg: 3
            "mirrored": 0.5,  # left and right of the head exchanged: twice the heads; SynthSeg: 0.5
        },
        "uptake": {
            # 62 % FDG, and what else brains are scanned with; chosen
            "tracer": {
                "fdg": 0.62,
                "amyloid_negative": 0.08,
                "amyloid_positive": 0.08,
                "tau": 0.07,
                "flat": 0.07,
                "any": 0.08,
            },
            # grey over white matter, FDG; BrainWeb 4 (Aubert-Broche 2006), Hoffman phantom 5
            "grey_to_white": (1.5, 6.0),
            "amyloid_negative": (0.5, 0.9),  # grey over white: unspecific binding in white; chosen
            "amyloid_positive": (0.9, 1.6),  # grey over white; chosen
            "tau_white": (0.7, 1.1),  # white over grey, with foci; chosen
            "flat_white": (0.85, 1.1),  # white over grey, with foci: amino acids; chosen
            "any_uptake": (0.0, 1.0),  # of every tissue, tracer "any"; SynthSeg's uniform law
            "fluid": (0.02, 0.15),  # of grey or white matter; BrainWeb .02, spill and blood; chosen
            "tumour": (0.3, 2.0),  # of grey matter; BrainWeb has .5 of white and 1.5 of grey
            # fat, muscle, skin, bone, marrow, vessels: factor on their usual FDG uptake; chosen
            "tissue_factor": (0.3, 4.0),
            "tissue_absent": 0.12,  # each of these without uptake; chosen
            "scalp_absent": 0.25,  # fat, muscle and skin without uptake; chosen: what costs most
            # SD of regional uptake of grey matter; the ordinary mode has .1
            "grey_field": (0.05, 0.3),
            "brain_field": (0.05, 0.15),  # of white matter, fluid, tumour; chosen
            "outer_field": (0.1, 0.4),  # outside the brain (20 mm); chosen
            "field_mm": (14.0, 30.0),  # smoothness inside the brain; chosen
            "has_spots": 0.5,  # hot muscle, mucosa and glands outside the skull; chosen
            "spots": (1, 7),  # their number; chosen
            "spot_height_low": (0.1, 0.3),  # of grey matter, the faintest; chosen
            "spot_height_high": (0.3, 1.2),  # the hottest; chosen
            "has_foci": 0.25,  # hot or cold foci in the brain, beside those of tau and flat; chosen
            "foci": (1, 4),  # their number; chosen
            "foci_cold": (0.3, 0.8),  # deepest loss; 15-40 % in dementia, none in a resection
            "foci_hot": (0.5, 1.6),  # highest gain; chosen
            "foci_sd_mm": (2.0, 8.0),  # their size; chosen
        },
        "correction": {
            "nac": 0.15,  # no attenuation correction at all; chosen: scans without a CT
            "nac_strength": (0.6, 1.0),  # of the loss: rays of unequal loss average to less; chosen
            "nac_rim": (0.0, 0.4),  # bright skin, of the brain's bright voxels; chosen
            "bone_as_water": 0.12,  # MR-based maps without bone (Andersen 2014)
            "mu_shifted": 0.3,  # map and PET of two positions; chosen
            "mu_shift_mm": (2.0, 6.0),  # by how much; chosen
            "mu_shift_direction": (-1.0, 1.0),  # its direction, per axis
            "mu_scale": (0.92, 1.08),  # of the whole map; chosen
            "has_holder": 0.3,  # a head holder; never in the CT and MR that are learnt; chosen
            "holder_gap_mm": (2.0, 15.0),  # behind the head; chosen
            "holder_mm": (4.0, 14.0),  # its thickness; chosen
            "holder_density": (0.1, 1.0),  # of water: foam to plastic; chosen
            "holder_in_map": 0.5,  # corrected for; chosen
            "holder_uptake": (0.0, 0.06),  # its ghost, of the brain's bright voxels; chosen
        },
        "scanner": {
            # FWHM in the plane: HRRT with filter to an old scanner, filtered (Joshi 2009: 8 mm)
            "fwhm_mm": (3.5, 10.0),
            "axial_ratio": (0.8, 1.6),  # FWHM through plane over that; chosen
            "has_scatter": 0.6,  # residual scatter; chosen
            "scatter": (0.0, 0.15),  # of the image, smoothed by 28 mm SD; 30 % before correction
            "resampled": 0.7,  # on voxels of its own, else on those of the files; chosen
            "pixel_mm": (2.0, 4.0),  # own pixels; scanners have 1.2 to 5, smaller ones show no more
            "slice_mm": (2.0, 8.0),  # own slices: HRRT 1.2, ECAT HR+ 2.4, RIRE 8
            "phase_x": (0.0, 1.0),  # where the own voxels begin, along x
            "phase_y": (0.0, 1.0),  # along y
            "phase_z": (0.0, 1.0),  # along z
        },
        "noise": {
            # variance as the mean (EM), even (EM, late and filtered), or filtered back-projection
            "law": {"em": 0.4, "even": 0.25, "fbp": 0.35},
            "cov": (0.02, 0.4),  # SD over mean in bright voxels; chosen
            "correlation": (0.3, 1.2),  # its FWHM over the resolution; chosen
            "air": (0.0, 0.05),  # EM: variance in air over that in bright voxels; chosen
            "has_uneven": 0.25,  # uneven noise; chosen
            "uneven": (0.1, 0.5),  # SD of its logarithm (30 mm); chosen
            "views": (24, 140),  # FBP: fewer views, wider streaks; chosen
            "streaks": (0.1, 0.9),  # FBP: SD of the logarithm of a view's noise; chosen
            # FBP: noise of rays beside the head over those through it; chosen: RIRE 001 has little in air
            "missing_rays": (0.05, 1.0),
            "cutoff": (0.09, 0.22),  # FBP: end of ramp and Hann window, 1/mm; chosen
            # below 0, but for EM, which has none: kept, cut off, or shown as magnitudes; chosen
            "negatives": {"kept": 0.35, "clipped": 0.55, "absolute": 0.1},
        },
        "view": {
            "has_cut_ends": 0.4,  # a short axial field of view; chosen: old scanners have 10 to 15 cm
            "cut_ends": (0.0, 0.3),  # how much of the z axis is without PET; chosen
            "cut_at_bottom": (0.0, 1.0),  # its part at the lower end
            "round": 0.3,  # a round field of view; chosen
            "round_mm": (96.0, 140.0),  # its radius: the smaller ones cut nose, ears or occiput
            "has_cut_side": 0.1,  # one side cut off by a plane; chosen
            "cut_side_mm": (8.0, 44.0),  # how deep into the field of view; chosen
            # which side
            "side": {"left": 0.25, "right": 0.25, "back": 0.25, "front": 0.25},
            # brightness over what `prepare` scales to (a hot spot darkens all else); chosen
            "gain": (0.65, 1.5),
            "gamma": (0.8, 1.25),  # PET ** gamma; chosen
        },
    }


def get_config(preset: str = "a6000") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.job = "simulate"
    config.preset = preset
    config.name = "phantom"  # of the cohort, in its manifest
    config.seed = 0
    # paired3 | abstract (CT or MR) | easy (no noise, healthy) | adversarial | randomised
    config.mode = "paired3"
    config.labels = ""  # folder of */label.nii.gz (BrainWeb codes); "" = the embedded head
    config.variants_per_head = 8  # virtual people per label volume; they share a group
    config.vary_first = True  # False: variant 0 keeps the label volume's own pose and shape
    config.n_subjects = 40  # people with the embedded head; ignored with labels
    config.shape = (96, 112, 24)  # voxels x, y, z; ignored with labels (their whole field of view)
    config.spacing_mm = (2.0, 2.0, 4.0)  # x, y, z
    config.pet_model = "fast"  # fast (blur + noise law) | osem (counts and reconstruction, slow)
    # beside each PET of pet_model osem the image of the same counts without correction of attenuation,
    # scatter and randoms (NAC), `nac`
    config.nac = False
    # a second CT and MR of the same person (acquired ones): the noise ceiling of the scores
    config.reacquire = True
    # acquired: sequence, bias, gain and noise as on a scanner | canonical: one sequence, none of these
    config.mr_target = "acquired"
    # acquired: texture, noise and cupping | canonical: none of these
    config.ct_target = "acquired"
    config.randomised_share = 0.8  # mode randomised: of PETs that are drawn from the ranges below
    config.pets_per_person = 1  # mode randomised: PETs with the same CT and MR
    config.randomised = randomised()
    config.workers = 2  # processes; 0 = none; changes no voxel
    config.update(common.pick(preset, **PRESETS))
    config.lock()
    return config
