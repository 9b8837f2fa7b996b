"""What the checks against PyTorch, MONAI and diffusers share: rows, layouts, carried weights."""

from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.flops import count_parameters, shapes_of
from cldm_jax.models import monai_names

TOLERANCE = 1e-4  # of outputs: largest difference over the largest value of the reference


class Row(NamedTuple):
    """One comparison. allowed: largest relative difference, 0 for what must be the same."""

    what: str
    value: Any
    reference: Any
    allowed: float = TOLERANCE

    @property
    def difference(self) -> float:
        value, reference = (np.asarray(x, np.float64) for x in (self.value, self.reference))
        if value.shape != reference.shape:
            raise ValueError(f"{self.what}: shapes differ: {value.shape}, {reference.shape}")
        return float(np.abs(value - reference).max() / (np.abs(reference).max() or 1.0))

    @property
    def is_met(self) -> bool:
        return self.difference <= self.allowed

    @property
    def count(self) -> int | None:
        """The value, where it is one number that must be the same."""
        return int(self.value) if np.ndim(self.value) == 0 and self.allowed == 0 else None


def randomise(net, seed: int) -> None:
    """Every parameter random: MONAI starts residual branches at zero, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            offset = 0.0 if parameter.ndim > 1 else 0.5
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(offset * (parameter == 1) + noise * 0.5 / fan_in**0.5)


def normal(seed: int, *shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numpy_state(net) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in net.state_dict().items()}


def nhwc(x) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def carried(module, net, *args) -> dict:
    """Parameters of the Flax module with the weights of the MONAI net."""
    return monai_names.to_params(numpy_state(net), shapes_of(module, *args))


def check_sizes(name: str, net, params):
    """Yields rows: as many parameters, and none that changes on the way there and back."""
    reference = sum(p.numel() for p in net.parameters())
    yield Row(f"{name}, parameters", count_parameters(params), reference, 0)
    back, state = monai_names.to_state_dict(params), numpy_state(net)
    wrong = len(back.keys() ^ state.keys())
    wrong += sum(not np.array_equal(back[k], state[k]) for k in back.keys() & state.keys())
    yield Row(f"{name}, weights that change there and back", wrong, 0, 0)
