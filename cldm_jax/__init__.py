"""Class-conditioned latent diffusion from brain PET to CT or MR, in JAX/Flax Linen.

Importing the package imports nothing heavy: every job imports what it uses.
"""

__version__ = "0.1.0"
