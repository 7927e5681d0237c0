"""APOLLO as an object: its state, saving and loading, groups, dtypes, bad input, compilation, workers."""

import copy
import functools
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

from rayrec.optim import clip_gradients
from rayrec.optim.apollo import Apollo
from rayrec.optim.apollo_groups import apollo_param_groups


class TinyModel(nn.Module):
    """One parameter of each sort: table, matrices (small, large, wide), stacked towers, convolution, vector, head."""

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 16, sparse=sparse)
        self.layers = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 16, bias=False))
        self.towers = nn.Parameter(torch.randn(3, 16, 8) / 4)
        self.shifts = nn.Parameter(torch.zeros(3, 1, 8))
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:  # (B,) -> (B,)
        hidden = self.layers(self.table(ids))
        features = torch.einsum("bd,tdk->btk", hidden, self.towers) + self.shifts.transpose(0, 1)  # (B, 3, 8)
        return self.head(self.conv(features.transpose(1, 2)).mean(2)).squeeze(1)


@pytest.fixture(autouse=True)
def _small_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayrec.optim.apollo_stacks.STACK_LIMIT", 500)


def make(*, sparse: bool = False, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[TinyModel, Apollo]:
    torch.manual_seed(0)
    model = TinyModel(sparse=sparse).to(dtype)
    embeddings = "rowwise_adagrad" if sparse else "adamw"
    groups = apollo_param_groups(model, weight_decay=0.1, rank=4, projection_period=3, embeddings=embeddings)
    return model, Apollo(groups, lr=0.01, **settings)


def train(model: TinyModel, optimizer: Apollo, steps: range, rows: slice = slice(0, 32)) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 30, (32,), generator=generator)[rows]
        loss = (model(ids).float() - (ids % 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def assert_equal_weights(a: nn.Module, b: nn.Module) -> None:
    other = b.state_dict()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_saved_and_loaded_run_goes_on_bit_for_bit_within_and_between_projection_periods(
    stop: int, sparse: bool
) -> None:
    whole, whole_optimizer = make(sparse=sparse)
    train(whole, whole_optimizer, range(9))
    first, first_optimizer = make(sparse=sparse)
    train(first, first_optimizer, range(stop))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": first_optimizer.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    second, second_optimizer = make(sparse=sparse)
    second.load_state_dict(saved["model"])
    second_optimizer.load_state_dict(saved["optimizer"])
    train(second, second_optimizer, range(stop, 9))
    assert_equal_weights(whole, second)


def test_the_state_holds_moments_norms_step_counts_and_seeds_only() -> None:
    model, optimizer = make(sparse=True)
    train(model, optimizer, range(4))
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        assert set(state) <= {"exp_avg", "exp_avg_sq", "update_norm", "step", "sum"}
        assert all(isinstance(value, Tensor) for value in state.values())
    assert all(isinstance(group.get("seed"), int) for group in saved["param_groups"])
    shapes = {n: optimizer.state[p] for n, p in model.named_parameters()}
    assert shapes["layers.0.weight"]["exp_avg"].shape == (40, 4)
    assert shapes["layers.2.weight"]["exp_avg"].shape == (4, 40)
    assert shapes["towers"]["exp_avg"].shape == (3, 16, 4)
    assert shapes["towers"]["update_norm"].shape == (3,)
    assert shapes["table.weight"]["sum"].shape == (30,)
    assert shapes["layers.0.weight"]["step"].item() == 4


@pytest.mark.parametrize(("scale_type", "rank", "share"), [("channel", 0.25, 0.26), ("tensor", 1, 0.01)])
def test_the_state_of_square_matrices_is_that_share_of_adamws(scale_type: Any, rank: int | float, share: float) -> None:
    weights = [nn.Parameter(torch.zeros(256, 256)) for _ in range(3)]
    optimizer, adamw = Apollo(weights, rank=rank, scale_type=scale_type), torch.optim.AdamW(weights)
    for weight in weights:
        weight.grad = torch.ones(256, 256)
    optimizer.step()
    adamw.step()
    sizes = [
        sum(value.nbytes for state in live.state.values() for value in state.values()) for live in (optimizer, adamw)
    ]
    assert 0 < sizes[0] <= share * sizes[1]
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
    }
    assert sum(storages.values()) == sizes[0]  # views of stacks, with nothing around them


def test_a_deep_copy_goes_on_as_the_original() -> None:
    model, optimizer = make(nonfinite="raise", state_dtype=torch.float64)
    train(model, optimizer, range(4))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(4, 8))
    train(twin, twin_optimizer, range(4, 8))
    assert_equal_weights(model, twin)
    assert twin_optimizer.nonfinite == "raise"


def test_float32_state_follows_float32_training_closer_than_bfloat16_state() -> None:
    exact, exact_optimizer = make()
    errors = []
    train(exact, exact_optimizer, range(12))
    for dtype in (torch.float32, None):
        model, optimizer = make(dtype=torch.bfloat16, state_dtype=dtype)
        train(model, optimizer, range(12))
        moments = {p: optimizer.state[p]["exp_avg"] for p in model.parameters()}
        assert all(m.dtype == (dtype or torch.bfloat16) for m in moments.values())
        ratios = [
            (optimizer.state[a]["exp_avg_sq"].float() / exact_optimizer.state[b]["exp_avg_sq"]).nanmedian()
            for a, b in zip(model.parameters(), exact.parameters(), strict=True)
        ]
        errors.append(max(abs(float(r) - 1) for r in ratios))
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        again, again_optimizer = make(dtype=torch.bfloat16, state_dtype=dtype)
        again.load_state_dict(model.state_dict())
        again_optimizer.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        train(model, optimizer, range(12, 15))
        train(again, again_optimizer, range(12, 15))
        assert_equal_weights(model, again)
    assert errors[0] < errors[1]


def test_groups_hold_every_parameter_once_and_put_it_where_documented() -> None:
    model = TinyModel(sparse=True)
    groups = apollo_param_groups(model, rank=4, embeddings="rowwise_adagrad", embedding_lr=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    placed = [(g["kind"], g.get("batch_dims"), sorted(names[id(p)] for p in g["params"])) for g in groups]
    assert placed == [
        ("apollo", 0, ["conv.weight", "layers.0.weight", "layers.2.weight"]),
        ("apollo", 1, ["towers"]),
        ("adamw", None, ["head.weight"]),
        ("adamw", None, ["conv.bias", "head.bias", "layers.0.bias", "shifts"]),
        ("rowwise_adagrad", None, ["table.weight"]),
    ]
    assert groups[-1]["lr"] == 0.5
    assert [g.get("eps") for g in groups] == [None, None, 1e-8, 1e-8, 1e-8]  # AdamW's, where updates are not projected
    model.layers.requires_grad_(False)
    frozen = apollo_param_groups(model, rank=4)
    assert sum(len(g["params"]) for g in frozen) == len(list(model.parameters())) - 3


def test_gradient_accumulation_equals_one_large_batch() -> None:
    (whole, whole_optimizer), (parts, parts_optimizer) = make(), make()
    for step in range(5):
        ids = torch.randint(0, 30, (32,), generator=torch.Generator().manual_seed(step))
        for model, pieces in ((whole, [ids]), (parts, list(ids.split(8)))):
            model.zero_grad()
            for piece in pieces:
                ((model(piece) - (piece % 3)).square().mean() / len(pieces)).backward()
            clip_gradients(model.parameters(), 0.5)
        whole_optimizer.step()
        parts_optimizer.step()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "scale_type", "rank"),
    [
        ((24, 8), "channel", 3),
        ((8, 24), "tensor", 3),
        ((40, 24), "tensor", 3),
        ((24, 40), "channel", 3),
        ((260, 256), "tensor", 1),  # from here on too large for a stack
        ((256, 272), "tensor", 1),
        ((250, 272), "tensor", 1),  # rows that no block of sums divides
    ],
)
def test_the_compiled_update_is_one_graph_compiled_once_and_equals_the_eager_one(
    shape: tuple[int, int], scale_type: Any, rank: int
) -> None:
    compiler = functools.partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    for chosen in (None, compiler):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(3)]
        optimizer = Apollo(params, lr=0.1, rank=rank, scale_type=scale_type, projection_period=2, compiler=chosen)  # type: ignore[arg-type]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
        for step in range(5):
            for p in params:
                p.grad = torch.randn(shape, generator=generator)
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                optimizer.step()
            schedule.step()
        results.append(params)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("device", "embeddings"), [("cpu", "adamw"), ("meta", "rowwise_adagrad")])
def test_a_step_never_reads_a_tensor_on_the_host(device: str, embeddings: Any) -> None:
    """On fake tensors any ``item()`` or ``nonzero()`` raises. "meta" takes the way of devices without fused kernels."""
    with FakeTensorMode():
        with torch.device(device):
            model = TinyModel()
        groups = apollo_param_groups(model, weight_decay=0.1, rank=4, projection_period=2, embeddings=embeddings)
        optimizer = Apollo(groups, lr=0.01)
        for step in range(3):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            if step == 1:
                model.towers.grad = None
            optimizer.step()
        with pytest.raises(DataDependentOutputException):
            optimizer.state[model.towers]["step"].item()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nonfinite_gradient_propagates_is_skipped_or_raised_as_asked(value: float) -> None:
    for nonfinite in ("propagate", "skip", "raise"):
        model, optimizer = make(nonfinite=nonfinite)
        train(model, optimizer, range(2))
        before = copy.deepcopy(model)
        model.towers.grad[1, 2, 3] = value  # type: ignore[index]
        if nonfinite == "raise":
            with pytest.raises(FloatingPointError, match="NaN or infinite"):
                optimizer.step()
        else:
            optimizer.step()
        if nonfinite == "propagate":
            assert model.towers[1].isnan().all()
            assert model.towers[0].isfinite().all()
        else:
            assert_equal_weights(model, before)
            assert optimizer.state[model.towers]["step"].item() == 2


def test_a_table_without_a_looked_up_row_is_finite_and_stays_as_it_is() -> None:
    model, optimizer = make(sparse=True, nonfinite="raise")
    before = model.table.weight.detach().clone()
    model.table.weight.grad = torch.sparse_coo_tensor(
        torch.empty(1, 0, dtype=torch.int64), torch.empty(0, 16), (30, 16)
    )
    optimizer.step()
    assert torch.equal(model.table.weight, before)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((8, 6), {"rank": 7}, "rank must lie between 1 and 6, the smaller dimension of a 8 x 6 matrix, not 7"),
        ((8, 6), {"rank": 1.5}, "share must lie in"),
        ((8,), {}, "at least 2 dimensions, not shape"),
        ((8, 6), {"batch_dims": 1}, "at least 3 dimensions, not shape"),
        ((8, 6), {"scale": 0.0}, "scale must be above 0"),
        ((8, 6), {"scale_type": "row"}, "channel or tensor, not 'row'"),
        ((8, 6), {"projection_period": 0}, "at least 1 step"),
        ((8, 6), {"norm_growth": 0.5}, "at least 1, or None"),
        ((8, 6), {"betas": (0.9, 1.0)}, "betas must lie"),
        ((8, 6), {"lr": -1.0}, "lr must be a number of at least 0"),
        ((8, 6), {"kind": "sgd"}, "kind must be one of"),
        ((8, 6, 2), {"kind": "rowwise_adagrad"}, r"takes \(rows, dim\) tables"),
    ],
)
def test_bad_settings_are_refused_with_their_value(shape: tuple[int, ...], settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Apollo([{"params": [nn.Parameter(torch.zeros(shape))], **settings}])


def test_a_sparse_gradient_outside_a_rowwise_group_is_refused_with_the_remedy() -> None:
    for kind in ("apollo", "adamw"):
        table = nn.Embedding(12, 8, sparse=True)
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(ValueError, match="put it into a rowwise_adagrad group"):
            Apollo([{"params": [table.weight], "kind": kind, "rank": 2}]).step()


def test_a_state_of_another_rank_is_refused_with_both_shapes() -> None:
    small, large = (nn.Parameter(torch.ones(12, 8)) for _ in range(2))
    optimizer = Apollo([small], rank=2)
    small.grad = large.grad = torch.ones(12, 8)
    optimizer.step()
    other = Apollo([large], rank=4)
    state = optimizer.state_dict()
    state["param_groups"] = other.state_dict()["param_groups"]
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"\(12, 2\), not \(12, 4\) for a \(12, 8\) parameter at rank 4"):
        other.step()


def _train_share(rows: slice, *, distributed: bool) -> dict[str, Tensor]:
    model, optimizer = make(sparse=True)
    forward = DistributedDataParallel(model) if distributed else model
    for step in range(7):
        ids = torch.randint(0, 30, (32,), generator=torch.Generator().manual_seed(step))[rows]
        loss = (forward(ids) - (ids % 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(model.parameters(), 0.5)
        optimizer.step()
    return model.state_dict()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(_train_share(slice(16 * rank, 16 * rank + 16), distributed=True), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ddp_workers_train_as_one_with_sparse_tables_and_clipping(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    one = _train_share(slice(0, 32), distributed=False)
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
