"""One GPU for some minutes: checked, raced against PyTorch, trained on. Run with `bash launch/gpu.sh`.

`run` plans the minutes and starts each part as a process with a deadline.
"""
