"""One GPU for some minutes: checked, raced against PyTorch, trained on. Run with `bash launch/gpu.sh`.

`run` plans the minutes and starts each part as a process with a deadline; `check`, `race` and `train` are
the parts. Written and rehearsed on CPUs (`--rehearse`): not measured on a GPU.
"""
