"""Image scores, their frozen protocol and per-patient statistics. numpy and scipy only."""
