"""This project against PyTorch and MONAI on the same machine. Run with `bash launch/benchmark.sh`.

Outside the package on purpose: nothing in cldm_jax imports torch, and no user of it installs torch.
"""
