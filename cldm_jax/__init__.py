"""Class-conditioned latent diffusion from brain PET to CT or MR, in JAX/Flax Linen.

    import cldm_jax

    made = cldm_jax.synthesise("pet.nii.gz", targets=("ct", "mr"))
    made["ct"].image    # nibabel, HU, on the PET's own grid

Importing the package imports nothing heavy: every job imports what it uses, and what is listed here is
imported when it is first asked for.
"""

__version__ = "0.1.0"

_PYTHON = ("synthesise", "Synthesiser")


def __getattr__(name: str):
    if name in _PYTHON:
        from cldm_jax.volumes import synthesiser

        return getattr(synthesiser, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PYTHON])
