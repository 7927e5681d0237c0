"""The training steps of DeepCTR-Torch and FuxiCTR, as their own ``fit`` makes them, on a DCN-V2 with parallel tower.

Both have no data of ours in common: ids arrive as one float matrix (DeepCTR-Torch) or one tensor a field (FuxiCTR). L2 penalties,
which walk over whole tables, are off in both. Neither offers bfloat16; ``bf16`` runs its model, up to its predictions, under
torch's autocast.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

from rayrec.batch import Batch

INSTALL = "the peers are not installed: pip install --constraint requirements.lock --editable '.[bench]'"


@dataclass(frozen=True)
class PeerShape:
    """The architecture that all share: see benchmarks.ranker_training."""

    field_sizes: tuple[int, ...]
    dense: int
    embedding_dim: int
    cross_layers: int
    tower: tuple[int, ...]


Step = Callable[[int], None]


def deepctr_torch_step(shape: PeerShape, batches: Sequence[Batch], bf16: bool) -> Step:
    """One step on batch i. With DeepCTR-Torch's linear part; loss, ``item()`` calls and order as in its ``BaseModel.fit``."""
    try:
        from deepctr_torch.inputs import DenseFeat, SparseFeat
        from deepctr_torch.models import DCN
    except ImportError:
        raise SystemExit(INSTALL) from None
    columns = [SparseFeat(f"c{i}", size, shape.embedding_dim) for i, size in enumerate(shape.field_sizes)]
    columns += [DenseFeat(f"d{i}", 1) for i in range(shape.dense)]
    model = DCN(
        columns,
        columns,
        cross_num=shape.cross_layers,
        cross_parameterization="matrix",
        dnn_hidden_units=shape.tower,
        l2_reg_linear=0,
        l2_reg_embedding=0,
        l2_reg_cross=0,
        l2_reg_dnn=0,
        device="cpu",
    )
    model.compile("adam", "binary_crossentropy")
    rows = [torch.cat([batch.categorical.float(), batch.dense], dim=1) for batch in batches]
    labels = [batch.labels[:, 0] for batch in batches]
    model.train()

    def step(i: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predicted = model(rows[i]).squeeze(-1).float()
        model.optim.zero_grad()
        loss = model.loss_func(predicted, labels[i], reduction="sum")
        total = loss + model.get_regularization_loss() + model.aux_loss
        loss.item()
        total.item()
        total.backward()
        model.optim.step()

    return step


def fuxictr_step(shape: PeerShape, batches: Sequence[Batch], bf16: bool) -> Step:
    """One step on batch i: ``BaseModel.train_step`` of a DCNv2 as in FuxiCTR's model zoo, of the package's own layers."""
    try:
        from fuxictr.features import FeatureMap
        from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block
        from fuxictr.pytorch.models import BaseModel
    except ImportError:
        raise SystemExit(INSTALL) from None
    features: OrderedDict[str, dict[str, object]] = OrderedDict(
        (f"c{i}", {"type": "categorical", "source": "", "vocab_size": size}) for i, size in enumerate(shape.field_sizes)
    )
    # one column for all numbers, as they are: the package's "numeric" type would make a vector of each
    features["dense"] = {"type": "embedding", "source": "", "feature_encoder": "nn.Identity()"}
    feature_map = FeatureMap("benchmark", "")
    feature_map.features, feature_map.labels = features, ["label"]
    width = len(shape.field_sizes) * shape.embedding_dim + shape.dense

    class DCNv2(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(feature_map, "DCNv2", verbose=0, model_root="", metrics=["AUC"])
            self.embedding_layer = FeatureEmbedding(feature_map, shape.embedding_dim)
            self.crossnet = CrossNetV2(width, shape.cross_layers)
            self.parallel_dnn = MLP_Block(input_dim=width, hidden_units=list(shape.tower), hidden_activations="ReLU")
            self.fc = nn.Linear(width + shape.tower[-1], 1)
            self.compile("adam", "binary_crossentropy", 1e-3)
            self.reset_parameters()
            self._max_gradient_norm = 10.0  # the default of ``fit``

        def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
                h = torch.cat([self.crossnet(x), self.parallel_dnn(x)], dim=-1)
                return {"y_pred": self.output_activation(self.fc(h)).float()}

    model = DCNv2()
    assert model.loss_fn is binary_cross_entropy
    rows = [
        {f"c{i}": batch.categorical[:, i].contiguous() for i in range(len(shape.field_sizes))}
        | {"dense": batch.dense, "label": batch.labels[:, :1]}
        for batch in batches
    ]
    model.train()
    return lambda i: model.train_step(rows[i])
