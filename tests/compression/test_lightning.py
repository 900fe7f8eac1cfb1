"""compress inside the loop of Lightning: an imitation, and itself where it is there.

The imitation does to a module what `lightning.pytorch` 2 does: `toggle_optimizer`
freezes what an optimiser does not own, an optimiser steps by a closure, validation runs
in inference mode, and in parallel `training_step` is called in place of forward, hooks
and all (`_ForwardRedirection`).
"""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_src.compression.attachment import attachment_of, compress
from pipeline_src.compression.config import CompressionConfig

EXACT = CompressionConfig(bits=32, min_numel=1)
EPS = torch.finfo(torch.float32).eps
ROWS, FEATURES, CLASSES = 160, 8, 3


class Trained(nn.Module):
    """As a LightningModule: the model is an attribute, the loss is its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(FEATURES, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, CLASSES),
        )

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        parts = self.model[0], self.model[1:]
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]


class Wrapper(nn.Module):
    """As DistributedDataParallel: calls the module it holds."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *arguments):
        return self.module(*arguments)


def redirected(module, *arguments):
    """training_step by way of the wrapper's forward and the module's own."""
    original = module.forward

    def once(*arguments):
        module.forward = original
        return module.training_step(*arguments)

    module.forward = once
    return Wrapper(module)(*arguments)


def toggle(module, optimizer):
    """Freeze what the optimiser does not own; what was frozen, to undo it."""
    owned = {id(one) for group in optimizer.param_groups for one in group["params"]}
    others = [one for one in module.parameters() if id(one) not in owned]
    for one in others:
        one.requires_grad_(False)
    return others


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        x = torch.randn(ROWS, FEATURES, generator=generator)
        yield x, torch.randint(CLASSES, (ROWS,), generator=generator)


def fit(module, is_parallel=False, states=None):
    """States before each step, and the gradients there; from given states if any."""
    optimizers, found = module.configure_optimizers(), []
    for index, batch in enumerate(batches()):
        for optimizer in optimizers:
            module.train()
            if states is not None:
                module.load_state_dict(states[len(found)])
            before = copy.deepcopy(module.state_dict())
            others = toggle(module, optimizer)

            def closure(batch=batch, index=index, optimizer=optimizer):
                if is_parallel:
                    loss = redirected(module, batch, index)
                else:
                    loss = module.training_step(batch, index)
                optimizer.zero_grad()
                loss.backward()
                return loss

            optimizer.step(closure)
            named = module.named_parameters()
            owned = {name: one.grad for name, one in named if one.requires_grad}
            found.append((before, copy.deepcopy(owned)))
            for one in others:
                one.requires_grad_(True)
        module.eval()
        with torch.inference_mode():
            module(batch[0])
    return found


def compressed(whole):
    """Trained, compressed as a whole or in the model that it holds."""
    module = Trained()
    compress(module if whole else module.model, EXACT)
    return module


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("is_parallel", [True, False])
def test_the_loop_gives_pytorchs_gradients(whole, is_parallel):
    expected = fit(Trained(), is_parallel)
    module = compressed(whole)
    found = fit(module, is_parallel, [state for state, _ in expected])
    for (_, truth), (_, gradients) in zip(expected, found, strict=True):
        assert gradients.keys() == truth.keys()
        # A bias in front of BatchNorm has a gradient of 0: errors count by the largest.
        largest = max(float(one.abs().max()) for one in truth.values())
        for name, one in truth.items():
            # The same but for the order of additions of ROWS terms.
            assert (gradients[name] - one).abs().max() <= ROWS * EPS * largest, name
    attachment = attachment_of(module if whole else module.model)
    # Validation opens no scope. In parallel a module that is compressed as a whole has
    # one for training_step and one within for the forward that this calls.
    nested = whole and is_parallel
    assert attachment.steps == len(expected) * (2 if nested else 1)
    assert not attachment._scopes


@pytest.mark.parametrize("whole", [True, False])
def test_checkpoints_go_both_ways_and_copies_stay_compressed(whole):
    module, plain = compressed(whole), Trained()
    fit(module)
    file = io.BytesIO()
    torch.save({"state_dict": module.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)["state_dict"]
    plain.load_state_dict(state)
    compressed(whole).load_state_dict(plain.state_dict())
    other = copy.deepcopy(module)
    mine, its = (attachment_of(one if whole else one.model) for one in (module, other))
    steps = mine.steps
    fit(other)
    assert its.steps == 2 * steps
    assert mine.steps == steps
    for name, value in module.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


def test_lightning_itself():
    pytest.importorskip("lightning", reason="lightning is no dependency of ours")
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = compress(Trained().model, EXACT)

        def training_step(self, batch, batch_idx):
            x, y = batch
            return functional.cross_entropy(self.model(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(list(batches()), batch_size=None))
    assert attachment_of(module.model).steps == len(list(batches()))
