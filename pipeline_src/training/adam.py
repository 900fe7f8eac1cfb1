"""Adam (Kingma & Ba 2015, arXiv:1412.6980) by PyTorch's own function.

The class `torch.optim.Adam` imports the compiler when it is made, whether anything is
compiled or not. That takes longer than a short training. The function that the class
calls does not, so here is the state around it: every bit is that of the class.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adam import adam

BETAS = (0.9, 0.999)  # defaults of torch.optim.Adam, as is EPSILON
EPSILON = 1e-8


class Adam:
    """Parameters and their moments; call zero_grad, backward, step."""

    def __init__(
        self, parameters: Iterable[Parameter], learning_rate: float, weight_decay: float
    ) -> None:
        """Start with no past."""
        self.parameters: list[Tensor] = list(parameters)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.mean = [torch.zeros_like(one) for one in self.parameters]
        self.mean_square = [torch.zeros_like(one) for one in self.parameters]
        # On the CPU, because they are read at every step.
        self.num_steps = [torch.tensor(0.0) for _ in self.parameters]

    @property
    def has_stepped(self) -> bool:
        """Whether there is a past."""
        return bool(self.num_steps[0])

    def state(self) -> list[Tensor]:
        """What is kept from step to step."""
        return [*self.mean, *self.mean_square, *self.num_steps]

    def zero_grad(self) -> None:
        """Give back the gradients."""
        for one in self.parameters:
            one.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter by its gradient."""
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        assert len(gradients) == len(self.parameters), "all take part in every step"
        adam(
            self.parameters,
            gradients,
            self.mean,
            self.mean_square,
            [],
            self.num_steps,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=EPSILON,
            maximize=False,
        )
