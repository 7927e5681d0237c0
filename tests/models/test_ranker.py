"""The ranker's parts against naive references, and its split into embed, represent and heads."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayrec.batch import Batch
from rayrec.models.layers.dense_input import DenseInput
from rayrec.models.layers.field_embedding import FieldEmbedding
from rayrec.models.layers.inference_layout import lay_out_for_inference
from rayrec.models.layers.interaction import CrossNetwork, DotInteraction
from rayrec.models.layers.padded_linear import PaddedLinear, with_padding
from rayrec.models.ranker import Ranker, RankerArchitecture, RankerInputs
from rayrec.optim import OptimizerConfig, build_optimizer

INPUTS = RankerInputs(
    dense_mean=(0.5, 1.0),
    dense_std=(2.0, 0.5),
    dense_log1p=(False, True),
    dense_missing=(True, False),
    categorical_sizes=(5, 7, 4),
    sequence_sizes=(7, 6),
    sequence_shares=(1, None),
    num_tasks=3,
    dense_quantiles=((0.0, 0.5, 1.0, 2.0, 3.0), (0.1, 0.1, 0.6, 0.9, 1.4)),
)
SMALL = RankerArchitecture(embedding_dim=4, trunk=(8, 6), tower=(5,))
ARCHITECTURES = {
    "stacked": SMALL,
    "low_rank": RankerArchitecture(embedding_dim=4, cross_rank=2, trunk=(8, 6), tower=(5,)),
    "parallel": RankerArchitecture(embedding_dim=4, structure="parallel", trunk=(8, 6), tower=(5,)),
    "dot": RankerArchitecture(embedding_dim=4, interaction="dot", trunk=(8, 6), tower=(5,)),
    "parallel_dot": RankerArchitecture(embedding_dim=4, interaction="dot", structure="parallel", trunk=(8,), tower=()),
    "experts": RankerArchitecture(embedding_dim=4, experts=4, expert=(9, 7), trunk=(8,), tower=(5,)),
    "no_trunk": RankerArchitecture(embedding_dim=4, interaction="none", trunk=(), tower=()),
    "bins": RankerArchitecture(embedding_dim=4, dense_bins=4, trunk=(8, 6), tower=(5,)),
    "dot_bins": RankerArchitecture(embedding_dim=4, dense_bins=2, interaction="dot", trunk=(8, 6), tower=(5,)),
    "parallel_bins": RankerArchitecture(embedding_dim=4, dense_bins=3, structure="parallel", trunk=(8,), tower=(5,)),
    "deep_only": RankerArchitecture(embedding_dim=4, wide=False, trunk=(8,), tower=(5,)),
    "deep_experts": RankerArchitecture(embedding_dim=4, wide=False, experts=2, expert=(3,), trunk=(8,), tower=()),
}


def some_batch(rows: int = 11) -> Batch:
    generator = torch.Generator().manual_seed(3)
    draw = lambda size, *shape: torch.randint(0, size, shape, generator=generator)  # noqa: E731
    dense = torch.rand(rows, 2, generator=generator) * 3
    dense[::4, 0] = torch.nan
    return Batch(
        dense=dense,
        categorical=torch.stack([draw(size, rows) for size in INPUTS.categorical_sizes], dim=1),
        labels=draw(2, rows, 3).float(),
        sequences=(draw(7, rows, 3), draw(6, rows, 2)),
    )


def trained(architecture: RankerArchitecture) -> Ranker:
    """A ranker whose every parameter is random: zeros would hide what they are multiplied by."""
    torch.manual_seed(0)
    model = Ranker(INPUTS, architecture)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_full_cross_follows_equation_1_of_dcn_v2() -> None:
    network, x0 = CrossNetwork(5, 3), torch.randn(6, 5)
    expected = torch.empty(6, 5)
    for row in range(6):
        x = x0[row].clone()
        for layer in network.layers:
            assert isinstance(layer, nn.Linear)
            x = torch.stack(
                [
                    x0[row, i] * (sum(layer.weight[i, j] * x[j] for j in range(5)) + layer.bias[i]) + x[i]
                    for i in range(5)
                ]
            )
        expected[row] = x
    torch.testing.assert_close(network(x0), expected)
    with torch.no_grad():
        answered = network(x0)
    assert torch.equal(answered, network(x0).detach())


def test_low_rank_cross_is_a_full_one_with_the_product_of_its_factors() -> None:
    low, full, x = CrossNetwork(6, 2, rank=2), CrossNetwork(6, 2), torch.randn(4, 6)
    with torch.no_grad():
        for factors, layer in zip(low.layers, full.layers, strict=True):
            assert isinstance(factors, nn.Sequential)
            assert isinstance(layer, nn.Linear)
            down, up = factors
            layer.weight.copy_(up.weight @ down.weight)
            layer.bias.copy_(up.bias)
    torch.testing.assert_close(low(x), full(x))


def test_gradients_of_full_cross_layers_are_right() -> None:
    network, x0 = CrossNetwork(5, 3).double(), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    parameters = [x0, *network.parameters()]

    def crossed(*_: Tensor) -> Tensor:  # gradcheck nudges the given tensors in place
        out: Tensor = network(x0)
        return out

    assert torch.autograd.gradcheck(crossed, parameters)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(("bfloat16", "tolerance"), [(False, 1e-5), (True, 0.1)])
def test_columns_of_padding_behind_the_input_change_nothing(rank: int | None, bfloat16: bool, tolerance: float) -> None:
    torch.manual_seed(0)
    network, x = CrossNetwork(21, 2, rank=rank), torch.randn(6, 21, requires_grad=True)
    layer = PaddedLinear(21, 3)
    wide = with_padding(x)
    assert wide.shape == (6, 32)
    assert network(wide)[0, 21:].tolist() == [1.0] + [0.0] * 10
    with torch.no_grad():  # biases that would be seen if they were added twice, or not at all
        for name, parameter in (*network.named_parameters(), *layer.named_parameters()):
            if name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) + 3.0)
    results = []
    for given in (x, wide):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            out = torch.cat([network(given)[:, :21], layer(network(given)), layer(given)], dim=1).float()
        gradients = torch.autograd.grad(out.square().sum(), [x, *network.parameters(), *layer.parameters()])
        results.append((out, *gradients))
    for expected, padded in zip(*results, strict=True):
        assert (padded - expected).norm() <= tolerance * expected.norm()


def test_one_cross_layer_with_identity_weights_squares_its_input() -> None:
    network, x = CrossNetwork(4, 1), torch.randn(3, 4)
    (layer,) = network.layers
    assert isinstance(layer, nn.Linear)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    torch.testing.assert_close(network(x), x.square() + x)


def test_dot_interaction_gives_each_pair_once() -> None:
    vectors = torch.randn(5, 4, 3)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    expected = torch.stack([(vectors[:, i] * vectors[:, j]).sum(1) for i, j in pairs], dim=1)
    torch.testing.assert_close(DotInteraction(4)(vectors), expected)


def test_the_trunk_is_as_wide_as_the_input_with_all_pairs() -> None:
    """Not wider by the padding only: 30 fields have 435 pairs beside their 120 columns."""
    inputs = RankerInputs((), (), (), (), (9,) * 30, (), (), 1)
    model = Ranker(inputs, RankerArchitecture(embedding_dim=4, interaction="dot", trunk=(), tower=()))
    assert model.representation_width >= 120 + 435
    ids = torch.randint(1, 9, (6, 30))
    batch = Batch(dense=torch.zeros(6, 0), categorical=ids, labels=torch.zeros(6, 1), sequences=())
    h = model.eval().represent(batch)
    assert h.shape == (6, model.representation_width)


def test_dense_input_standardizes_clips_and_marks_missing_values() -> None:
    layer = DenseInput([1.0, 0.0, 3.0], [2.0, 1.0, 0.0], [False, True, False], [True, False, False])
    given = torch.tensor([[torch.nan, -(torch.e - 1), 3.5], [1e9, torch.e - 1, 2.0]])
    expected = torch.tensor([[0.0, -1.0, 0.5, 1.0], [10.0, 1.0, -1.0, 0.0]])
    torch.testing.assert_close(layer(given), expected)


def test_fields_have_rows_of_their_own_and_sequences_share_them() -> None:
    embedding = FieldEmbedding((5, 7), 3, sequence_sizes=(7, 6), sequence_shares=(1, None))
    rows = embedding.table.weight
    assert rows.shape == (5 + 7 + 6, 3)
    ids, shared, own = torch.tensor([[4, 2]]), torch.tensor([[6, 2, 0]]), torch.tensor([[1, 0]])
    out = embedding(ids, [shared, own])
    expected = torch.cat([rows[4], rows[5 + 2], (rows[5 + 6] + rows[5 + 2]) / 2, rows[12 + 1]])
    torch.testing.assert_close(out[0], expected)
    total = embedding.total(embedding.ids(ids), [shared, own])
    torch.testing.assert_close(total[0], expected.view(4, 3).sum(0))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("there", [("dense",), ("sequences",), ("dense", "sequences"), ("categorical",)])
def test_a_ranker_reads_inputs_of_some_kinds_only(name: str, there: tuple[str, ...]) -> None:
    """A log may have numbers, or lists, and nothing else."""
    batch = some_batch()
    inputs = replace(
        INPUTS,
        **{field: () for field in vars(INPUTS) if field.startswith("dense_") and "dense" not in there},
        categorical_sizes=INPUTS.categorical_sizes if "categorical" in there else (),
        sequence_sizes=INPUTS.sequence_sizes if "sequences" in there else (),
        sequence_shares=(None, None) if "sequences" in there else (),
    )
    some = replace(
        batch,
        dense=batch.dense if "dense" in there else batch.dense[:, :0],
        categorical=batch.categorical if "categorical" in there else batch.categorical[:, :0],
        sequences=batch.sequences if "sequences" in there else (),
    )
    torch.manual_seed(0)
    model = Ranker(inputs, ARCHITECTURES[name])
    out = model(some)
    assert out.shape == (11, 3)
    out.sum().backward()
    assert out.isfinite().all()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    empty = FieldEmbedding(
        inputs.categorical_sizes, 3, sequence_sizes=inputs.sequence_sizes, sequence_shares=inputs.sequence_shares
    )
    rows = empty(some.categorical, some.sequences).view(11, -1, 3)
    torch.testing.assert_close(empty.total(empty.ids(some.categorical), some.sequences), rows.sum(1))


def test_padding_changes_no_pooled_sequence_and_gets_no_gradient() -> None:
    embedding = FieldEmbedding((), 3, sequence_sizes=(6,), sequence_shares=(None,))
    ids = torch.tensor([[2, 5], [3, 0], [0, 0]])
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.int64)], dim=1)
    nothing = torch.empty(3, 0, dtype=torch.int64)
    out = embedding(nothing, [padded])
    assert torch.equal(out, embedding(nothing, [ids]))
    assert torch.equal(out[2], torch.zeros(3))
    out.sum().backward()
    gradient = embedding.table.weight.grad
    assert gradient is not None
    assert gradient.any(1).tolist() == [False, False, True, True, False, True]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forward_is_heads_of_the_representation_as_wide_as_announced(name: str) -> None:
    model, batch = trained(ARCHITECTURES[name]), some_batch()
    h = model.represent(batch)
    assert h.shape == (11, model.representation_width)
    logits = model.heads(h)
    assert logits.shape == (11, 3)
    assert torch.equal(model(batch), logits)
    assert logits.std(0).min() > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layout_for_inference_changes_no_answer_and_leaves_nothing_to_pad(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = trained(ARCHITECTURES[name]), some_batch()
    with torch.inference_mode():
        wanted = model(batch)
        lay_out_for_inference(model)
        for name in ("padded_linear.pad", "interaction.with_bias"):
            monkeypatch.setattr(f"rayrec.models.layers.{name}", _never)
        torch.testing.assert_close(model(batch), wanted)


def _never(*_: object) -> Tensor:
    raise AssertionError("weights were padded before")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_the_layers_written_out(name: str) -> None:
    """Padding, columns of biases, sorted rows and parts going back in one piece: none of it is seen in a gradient."""
    _assert_written_out_is_the_same(ARCHITECTURES[name])


@pytest.mark.parametrize("structure", ["stacked", "parallel"])
@pytest.mark.parametrize(("layers", "trunk"), [(1, (8,)), (1, (8, 6)), (3, (20, 8, 6))])
@pytest.mark.parametrize(("dim", "wide"), [(4, True), (4, False), (9, True), (9, False)])
def test_a_cross_network_and_a_trunk_of_any_depth_are_one_node_with_the_gradients_of_their_layers(
    structure: Any, layers: int, trunk: tuple[int, ...], dim: int, wide: bool
) -> None:
    """Inputs are 23 wide, 32 when padded, and 48, which needs none."""
    architecture = RankerArchitecture(
        embedding_dim=dim, cross_layers=layers, structure=structure, trunk=trunk, tower=(), wide=wide
    )
    model, batch = trained(architecture), some_batch()
    h = model.represent(batch)
    assert type(h.grad_fn).__name__ == "_CrossedTrunkBackward"
    with torch.no_grad():
        torch.testing.assert_close(h.detach(), model.represent(batch))  # layer by layer
    _assert_written_out_is_the_same(architecture)


@pytest.mark.parametrize("structure", ["stacked", "parallel"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("dim", "wide"), [(4, True), (4, False), (9, True)])
def test_in_bfloat16_they_are_that_node_too_and_only_rounding_apart(
    structure: Any, layers: int, dim: int, wide: bool
) -> None:
    """A dropout that drops nothing keeps the layers apart."""
    architecture = RankerArchitecture(
        embedding_dim=dim, cross_layers=layers, structure=structure, trunk=(8, 6), tower=(5,), wide=wide
    )
    model, apart = trained(architecture), trained(replace(architecture, embedding_dropout=1e-12)).train()
    batch, towards = some_batch(2000), torch.randn(2000, 3, generator=torch.Generator().manual_seed(5))
    for parameter in (*model.parameters(), *apart.parameters()):
        parameter.data *= 0.3  # small beside the 1 that a gate may hold
    exact = torch.autograd.grad((model(batch) * towards).sum(), list(model.parameters()))
    found = []
    for some in (model, apart):
        with torch.autocast("cpu", torch.bfloat16):
            h = some.represent(batch)
            logits = some.heads(h)
        assert ("_CrossedTrunkBackward" in _nodes(h)) == (some is model)
        torch.testing.assert_close(logits.float(), model(batch), rtol=0.02, atol=0.01)
        found.append(torch.autograd.grad((logits * towards).sum(), list(some.parameters())))
    for (name, _), wanted, at_once, layer_by_layer in zip(model.named_parameters(), exact, *found, strict=True):
        error, apart_error = ((some - wanted).norm() / wanted.norm() for some in (at_once, layer_by_layer))
        assert error <= 3 * apart_error + 0.05, name


def test_in_bfloat16_a_gate_is_not_rounded_beside_a_one() -> None:
    """What the cross layer gives is off by the roundings of its input and of its output: sqrt(2) of one."""
    architecture = RankerArchitecture(embedding_dim=4, cross_layers=1, structure="parallel", trunk=(8,), tower=())
    model, batch = trained(architecture), some_batch(2000)
    for parameter in model.interaction.parameters():
        parameter.data *= 0.02
    crossed = model.represent(batch)[:, : model.interacted_width]
    with torch.autocast("cpu", torch.bfloat16):
        found = model.represent(batch)[:, : model.interacted_width]
    rounding = (crossed.bfloat16() - crossed).norm()
    assert (found - crossed).norm() <= 1.55 * rounding


@pytest.mark.parametrize("name", [name for name, architecture in ARCHITECTURES.items() if architecture.wide])
def test_in_bfloat16_the_wide_part_keeps_the_bits_of_float32(name: str) -> None:
    model, batch = trained(ARCHITECTURES[name]), some_batch()
    exact = model.represent(batch)[:, -3:]
    with torch.autocast("cpu", torch.bfloat16):
        found = model.represent(batch)[:, -3:]
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def _nodes(x: Tensor) -> set[str]:
    """Names of the graph's nodes behind x."""
    names, left = set(), [x.grad_fn]
    while left:
        node = left.pop()
        if node is not None:
            names.add(type(node).__name__)
            left += [before for before, _ in node.next_functions]
    return names


def _assert_written_out_is_the_same(architecture: RankerArchitecture) -> None:
    model, batch = trained(architecture).double(), some_batch()
    batch = replace(batch, dense=batch.dense.double())
    build_optimizer(model, OptimizerConfig())  # tables get sparse gradients
    towards = torch.randn(11, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    parameters = dict(model.named_parameters())
    written_out = _written_out(model, batch)
    torch.testing.assert_close(model(batch), written_out)
    expected = torch.autograd.grad((written_out * towards).sum(), list(parameters.values()))
    (model(batch) * towards).sum().backward()
    for (parameter, wanted), key in zip(zip(parameters.values(), expected, strict=True), parameters, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad.to_dense(), wanted.to_dense(), msg=lambda text, key=key: f"{key}: {text}"
        )


def _written_out(model: Ranker, batch: Batch) -> Tensor:
    """The logits from plain operations of torch on the parameters, for autograd to go back through."""

    def rows(table: FieldEmbedding) -> Tensor:  # (B, K, d)
        weight = table.table.weight
        fields = [weight[batch.categorical[:, i] + table.offsets[i]] for i in range(table.num_fields)]
        for ids, offset in zip(batch.sequences, table.sequence_offsets, strict=True):
            there = (ids > 0).unsqueeze(2)
            fields.append((weight[ids + offset] * there).sum(1) / there.sum(1).clamp_min(1))
        return torch.stack(fields, dim=1)

    def through(layers: nn.Module, x: Tensor) -> Tensor:
        for layer in layers.children():
            x = x @ layer.weight.T + layer.bias if isinstance(layer, nn.Linear) else layer(x)
        return x

    dense = model.dense_input(batch.dense)
    vectors = rows(model.embedding)
    if model.numbers is not None:
        of_numbers = model.numbers(model.dense_input.transformed(batch.dense))
        vectors = torch.cat([vectors, of_numbers.unflatten(1, (-1, vectors.shape[2]))], dim=1)
    x = interacted = torch.cat([vectors.flatten(1), dense], dim=1)
    if isinstance(model.interaction, CrossNetwork):
        for layer in model.interaction.layers:
            projected = interacted
            for part in [layer] if isinstance(layer, nn.Linear) else layer.children():
                assert isinstance(part, nn.Linear)
                projected = projected @ part.weight.T + (0.0 if part.bias is None else part.bias)
            interacted = x * projected + interacted
    elif isinstance(model.interaction, DotInteraction):
        vectors = torch.cat([vectors, through(model.dense_vector, dense).unsqueeze(1)], dim=1)
        count = vectors.shape[1]
        pairs = [(vectors[:, i] * vectors[:, j]).sum(1) for i in range(count) for j in range(i)]
        interacted = torch.cat([x, torch.stack(pairs, dim=1)], dim=1)
    parallel = model.architecture.structure == "parallel"
    h = torch.cat([interacted, through(model.trunk, x)], dim=1) if parallel else through(model.trunk, interacted)
    if model.experts is not None and model.gates is not None:
        h = torch.cat([model.experts(h).transpose(0, 1).flatten(1), model.gates(h)], dim=1)
    wide = torch.zeros(())
    if model.wide is not None and model.wide_dense is not None:
        wide = rows(model.wide).sum(1) + dense @ model.wide_dense.weight.T
    if model.gates is not None:
        return model.heads(h if model.wide is None else torch.cat([h, wide], dim=1))
    logits = []
    for task in range(model.num_heads):
        z = h
        for layer in model.towers.hidden:
            z = (z @ layer.weight[task] + layer.bias[task]).relu()
        assert model.towers.last is not None
        logits.append(z @ model.towers.last.weight[task] + model.towers.last.bias[task])
    return torch.cat(logits, dim=1) + wide


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_slot_t_of_an_own_representation_for_each_task_feeds_only_task_t(name: str) -> None:
    model = trained(ARCHITECTURES[name])
    h = torch.randn(3, 11, model.representation_width, requires_grad=True)
    logits = model.heads(h)
    expected = torch.stack([model.heads(h[t])[:, t] for t in range(3)], dim=1)
    torch.testing.assert_close(logits, expected)
    for t in range(3):
        (gradient,) = torch.autograd.grad(logits[:, t].sum(), h, retain_graph=True)
        assert gradient.flatten(1).any(1).tolist() == [slot == t for slot in range(3)]


def test_mmoe_mixes_experts_by_each_tasks_own_softmax_gate() -> None:
    architecture = ARCHITECTURES["experts"]
    model, batch = trained(architecture), some_batch()
    assert model.experts is not None
    assert model.gates is not None
    assert model.wide_dense is not None
    x = model.embed(batch)
    features, wide = x[:, : model.wide_columns.start], x[:, model.wide_columns]
    h = model.trunk(model.interaction(features))
    expected = []
    for t in range(3):
        gate = (h @ model.gates.weight[4 * t : 4 * t + 4].T + model.gates.bias[4 * t : 4 * t + 4]).softmax(1)  # (B, E)
        mixture = torch.zeros(11, 7)
        for e in range(4):
            out: Tensor = h
            for layer in model.experts.hidden:
                out = (out @ layer.weight[e] + layer.bias[e]).relu()
            mixture += gate[:, e : e + 1] * out
        hidden = model.towers.hidden[0]
        last = model.towers.last
        assert last is not None
        tower = (mixture @ hidden.weight[t] + hidden.bias[t]).relu() @ last.weight[t] + last.bias[t]
        linear = x[:, model.dense_columns] @ model.wide_dense.weight[t]
        expected.append(tower.squeeze(1) + wide[:, t] + linear)
    torch.testing.assert_close(model(batch), torch.stack(expected, dim=1))


def test_the_wide_part_adds_a_linear_model_of_all_features() -> None:
    model, batch = trained(SMALL), some_batch()
    assert model.wide is not None
    assert model.wide_dense is not None
    with_wide = model(batch)
    linear = model.wide_dense(model.dense_input(batch.dense))
    linear = linear + model.wide(batch.categorical, batch.sequences).unflatten(1, (-1, 3)).sum(1)
    nn.init.zeros_(model.wide.table.weight)
    nn.init.zeros_(model.wide_dense.weight)
    torch.testing.assert_close(with_wide - model(batch), linear)


def test_dropout_on_the_inputs_leaves_the_wide_part_alone() -> None:
    architecture = RankerArchitecture(embedding_dim=4, trunk=(8,), tower=(), embedding_dropout=0.999)
    model, batch = trained(architecture).train(), some_batch()
    h = model.represent(batch)
    assert torch.equal(h[:, -3:], model.eval().represent(batch)[:, -3:])
    assert (h[:, :-3] != model.represent(batch)[:, :-3]).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"embedding_dim": 0}, "must be at least 1"),
        ({"trunk": (8, 0)}, "must be at least 1"),
        ({"cross_rank": 0}, "must be at least 1"),
        ({"experts": -1}, "must be at least 0"),
        ({"experts": 2, "expert": ()}, "at least one layer size in expert"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
    ],
)
def test_impossible_architectures_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankerArchitecture(**wrong)  # type: ignore[arg-type]
