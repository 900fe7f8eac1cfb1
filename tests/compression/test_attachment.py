"""What a user may do with a compressed model, and what is refused."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline_src.compression import scope
from pipeline_src.compression.attachment import (
    attachment_of,
    compress,
    decompress,
)
from pipeline_src.compression.config import CompressionConfig, Keep, Part
from tests.compression.zoo import MODELS, adjacency, edges, features, labels

EXACT = CompressionConfig(bits=32, min_numel=1)
TWO_BITS = CompressionConfig(bits=2, min_numel=1)
EPS = torch.finfo(torch.float32).eps


def sage():
    torch.manual_seed(4)
    return MODELS["sage"]()


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        return self.last(functional.relu(self.norm(self.first(x))))


def mlp():
    torch.manual_seed(5)
    return Mlp()


def rows(num_rows=200, seed=6):
    return torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(seed))


def gradients(model, loss):
    model.zero_grad()
    loss().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_near(found, expected):
    """The same but for the order of additions of at most 200 terms."""
    largest = max(float(one.abs().max()) for one in expected.values())
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert (found[name] - one).abs().max() <= largest * 200 * EPS, name


def saved_bytes(model, *arguments):
    """Of distinct tensors that the graph of the output holds, hooks of ours beneath."""
    from pipeline_src.training.meters import measure_memory

    model(*arguments)
    _, use = measure_memory(lambda: model(*arguments), torch.device("cpu"))
    return use.held


def test_the_model_stays_what_it_was():
    model = sage()
    names, kind = list(model.state_dict()), type(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert compress(model, TWO_BITS) is model
    assert type(model) is kind
    assert list(model.state_dict()) == names
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert "forward" not in model.__dict__


def test_it_keeps_less_and_decompress_undoes_it():
    model = sage()
    x, adj = features().repeat(1, 1), adjacency()
    before = saved_bytes(model, x, adj)
    compress(model, TWO_BITS)
    assert saved_bytes(model, x, adj) < before
    decompress(model)
    assert attachment_of(model) is None
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert saved_bytes(model, x, adj) == before


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_without_training_no_scope_is_opened(how, monkeypatch):
    model = compress(sage(), TWO_BITS)
    monkeypatch.setattr(scope.Scope, "begin", None)
    if how == "eval":
        model.eval()(features(), edges())
    else:
        with torch.no_grad():
            model(features(), edges())


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_copies_are_compressed_and_independent(way):
    model = compress(mlp(), TWO_BITS)
    model(rows())
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert attachment_of(other) is not None
    assert attachment_of(other) is not attachment_of(model)
    x = rows()
    mine = gradients(model, lambda: model(x).square().sum())
    theirs = gradients(other, lambda: other(x).square().sum())
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    decompress(other)
    assert attachment_of(model) is not None
    other(x).sum().backward()


def test_twice_is_refused_and_so_is_nothing():
    model = nn.Sequential(compress(mlp()), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="0 is compressed already; call decompress"):
        compress(model)
    with pytest.raises(ValueError, match="not compressed; there is nothing to undo"):
        decompress(model)


def test_hooks_of_others_stay_and_are_called():
    model, calls = mlp(), []
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model.first.register_full_backward_hook(lambda *_: calls.append("backward"))
    compress(model, TWO_BITS)
    model(rows()).sum().backward()
    decompress(model)
    model(rows()).sum().backward()
    assert calls == ["forward", "backward"] * 2


def test_an_error_in_forward_closes_the_scope():
    model = compress(mlp(), TWO_BITS)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.zeros(200, 9))
    x = torch.ones(2000, requires_grad=True)
    (x * x).sum().backward()
    assert torch.equal(x.grad, torch.full((2000,), 2.0))
    model(rows()).sum().backward()


def exact_pair():
    model = mlp()
    return model, compress(copy.deepcopy(model), EXACT)


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(
            lambda m: m(rows()).square().sum() + m(rows(seed=7)).sum(), id="two calls"
        ),
        pytest.param(
            lambda m: (
                functional.relu(m.first(m.first(rows())[:, :8])).sum() + m(rows()).sum()
            ),
            id="parts called alone, a layer used twice",
        ),
        pytest.param(
            lambda m: m(rows().requires_grad_()).exp().sum(), id="inputs with gradients"
        ),
    ],
)
def test_ways_of_training_give_pytorchs_gradients(loss):
    model, other = exact_pair()
    expected = gradients(model, lambda: loss(model))
    assert_near(gradients(other, lambda: loss(other)), expected)


def test_gradients_add_up_over_steps_and_two_losses_share_a_forward():
    model, other = exact_pair()
    for one in (model, other):
        one(rows()).square().sum().backward()
        output = one(rows(seed=8))
        output.sum().backward(retain_graph=True)
        output.square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert_near({name: p.grad for name, p in other.named_parameters()}, expected)


def test_gradients_of_the_input_are_pytorchs():
    model, other = exact_pair()
    x, y = rows().requires_grad_(), rows().requires_grad_()
    model(x).square().sum().backward()
    other(y).square().sum().backward()
    assert_near({"x": y.grad}, {"x": x.grad})


@pytest.mark.parametrize("frozen", ["first", "norm", "last"])
def test_frozen_layers_get_no_gradient_and_cost_the_others_none(frozen):
    model, other = exact_pair()
    for one in (model, other):
        getattr(one, frozen).requires_grad_(False)
    expected = gradients(model, lambda: model(rows()).square().sum())
    assert_near(gradients(other, lambda: other(rows()).square().sum()), expected)


@pytest.mark.parametrize("config", [EXACT, TWO_BITS])
def test_a_norm_in_eval_mode_stays_where_it_is(config):
    model = mlp()
    other = compress(copy.deepcopy(model), config)
    for one in (model, other):
        one.norm.eval()
    x = rows()
    assert torch.equal(model(x), other(x))
    expected = gradients(model, lambda: model(x).square().sum())
    found = gradients(other, lambda: other(x).square().sum())
    assert torch.equal(other.norm.running_mean, model.norm.running_mean)
    if config is EXACT:
        assert_near(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sage", "gat"])
def test_autocast_gives_equal_outputs_and_near_gradients(name, dtype):
    torch.manual_seed(4)
    model = MODELS[name]()
    other = compress(copy.deepcopy(model), EXACT)
    found = []
    for one in (model, other):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=dtype):
            output = one(features(), edges())
        functional.cross_entropy(output.float(), labels()).backward()
        found.append((output, {n: p.grad for n, p in one.named_parameters()}))
    (mine, expected), (theirs, others) = found
    assert torch.equal(mine, theirs)
    largest = max(float(one.abs().max()) for one in expected.values())
    for key, one in expected.items():
        # Sums of 120 terms in the narrow type, in another order.
        bound = largest * 120 * torch.finfo(dtype).eps
        assert (others[key] - one).abs().max() <= bound, key


def test_a_scaler_finds_its_gradients():
    model = compress(mlp(), TWO_BITS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    before = model.first.weight.detach().clone()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = model(rows()).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(model.first.weight, before)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_inside_is_left_alone(reentrant):
    class Checkpointed(Mlp):
        def forward(self, x):
            hidden = checkpoint(self.first, x, use_reentrant=reentrant)
            return self.last(functional.relu(self.norm(hidden)))

    torch.manual_seed(5)
    model = Checkpointed()
    other = compress(copy.deepcopy(model), EXACT)
    x = rows().requires_grad_()
    expected = gradients(model, lambda: model(x).square().sum())
    assert_near(gradients(other, lambda: other(x).square().sum()), expected)


class ChangesInPlace(nn.Module):
    """What PyTorch allows: nobody keeps what is changed."""

    def __init__(self, where):
        super().__init__()
        self.where = where
        self.first, self.last = nn.Linear(10, 16), nn.Linear(16, 3)

    def forward(self, x, adj):
        x = self.first(x)
        if self.where == "after dropout":
            return self.last(functional.dropout(x.sigmoid(), 0.3).mul_(3.0))
        aggregated = adj @ x
        x.mul_(2.0)
        if self.where == "before the weight":
            return self.last(aggregated)
        one = self.last(x)
        return one + self.last(aggregated)


@pytest.mark.parametrize("where", ["after dropout", "before the weight", "between"])
def test_changes_in_place_that_pytorch_allows_are_seen(where):
    torch.manual_seed(5)
    model = ChangesInPlace(where)
    other = compress(copy.deepcopy(model), EXACT)
    found = []
    for one in (model, other):
        torch.manual_seed(6)
        found.append(
            gradients(one, lambda m=one: m(features(), adjacency()).square().sum())
        )
    assert_near(found[1], found[0])


@pytest.mark.parametrize("what", ["weight", "input"])
def test_what_changed_between_forward_and_backward_is_refused(what):
    model = compress(mlp(), TWO_BITS)
    x = rows()
    loss = model(x).sum()
    with torch.no_grad():
        (model.last.weight if what == "weight" else x).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_of_gradients_are_refused():
    model = compress(mlp(), TWO_BITS)
    x = rows().requires_grad_()
    (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_parts_are_kept_as_asked():
    keep = CompressionConfig(2, min_numel=1, choices=((Part(name="last"), Keep()),))
    model = compress(mlp(), keep)
    model(rows()).sum().backward()
    assert [note.module for note in attachment_of(model).notes] == []
    output = model(rows())
    source = output.grad_fn.source
    assert source.precision == 2, "Keep() is exact"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"bits": 1}, "one bit tells on which side"), ({"bits": 3}, "bits must be one")],
)
def test_bits_that_cannot_be_right_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CompressionConfig(**arguments)


def test_the_random_stream_of_the_user_is_left_alone():
    torch.manual_seed(1)
    sage()(features(), edges())
    expected = torch.rand(3)
    model = sage()
    compress(model, TWO_BITS)
    torch.manual_seed(1)
    sage()
    model(features(), edges())
    assert torch.equal(torch.rand(3), expected)


def test_compiling_a_compressed_model_is_refused():
    """Dynamo would run the rules otherwise, and lose their gradients."""
    model = mlp()
    compiled = torch.compile(compress(model, TWO_BITS), backend="eager")
    with pytest.raises(RuntimeError, match="a compressed model cannot be compiled"):
        compiled(rows())
    torch.compiler.reset()
    model(rows()).sum().backward()


def test_hooks_can_be_registered_once_it_is_undone():
    model = decompress(compress(mlp()))
    seen = []
    model.register_forward_pre_hook(lambda *given: seen.append(given))
    model(rows())
    assert len(seen) == 1
