"""Simulated PET/CT/MR people: anatomy or label maps in, volumes with truth out. Never imports jax."""
