"""The ensemble's second learned member: a denoising auto-encoder of genuine transactions.

It learns to rebuild a genuine transaction from a copy with noise in it (Vincent et al. 2008); what it rebuilds badly is unlike
them. It sees no fraud and no outcome, so it can tell kinds of fraud that the trees have never met. Needs PyTorch; serving needs
only the TorchScript file that `save` writes.
"""

from __future__ import annotations

import io
import logging
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from .features import FEATURE_NAMES

try:
    import torch
except ImportError as error:  # pragma: no cover # the environments that train have it
    raise ImportError("fraud_features.anomaly needs PyTorch: pip install 'serinus[torch-server]'") from error

from torch import Tensor, nn

__all__ = ["COLUMNS", "AutoEncoder", "Strangeness", "save", "strangeness", "train_autoencoder"]

_log = logging.getLogger("fraud_features.anomaly")

COLUMNS: Final = (
    "amount",
    "amount_to_customer_mean_7d",
    "amount_to_customer_mean_30d",
    "amount_to_terminal_mean_30d",
    "card_present",
    "seconds_since_last",
    "last_place_km",
    "last_place_kmh",
    "shipping_home_km",
    "terminal_home_km",
    "shipping_terminal_km",
    "customer_mean_1d",
    "customer_mean_7d",
    "customer_mean_30d",
)
"""How much, where and how fast: what a thief does otherwise than the owner. No outcomes (the trees' matter), no calendar."""

_HIDDEN: Final = 64
_NOISE: Final = 0.6
"""In standard deviations. Without it the layers, wider than the input, would learn to copy. It, the width and the columns were
chosen by the frauds of the days that stop the boosting."""
_EPOCHS: Final = 12
_ROWS: Final = 512
_LIMIT: Final = 8.0
"""What an infinite feature is taken for, in standard deviations; others are bounded by their logarithm."""


class AutoEncoder(nn.Module):
    """Rebuilds the columns of genuine transactions from noisy copies, all on one scale.

    Args:
        names: of the columns of the features that it is given.
        rows: float32 [n, F], what it is to learn; gives each column's centre and scale.
    """

    def __init__(self, names: Sequence[str], rows: np.ndarray) -> None:
        super().__init__()
        self.feature_names = list(names)
        columns = [self.feature_names.index(name) for name in COLUMNS]
        spread = np.arcsinh(rows[:, columns].astype(np.float64))
        scale = 1 / np.maximum(np.nanstd(spread, axis=0), 1e-3)
        self.columns = nn.Buffer(torch.tensor(columns))
        self.scale = nn.Buffer(torch.from_numpy(scale))
        self.shift = nn.Buffer(torch.from_numpy(-np.nanmean(spread, axis=0) * scale))
        self.first = nn.Linear(len(columns), _HIDDEN, dtype=torch.float64)
        self.second = nn.Linear(_HIDDEN, _HIDDEN - 1, dtype=torch.float64)  # `Strangeness` has a use for the last unit
        self.third = nn.Linear(_HIDDEN - 1, len(columns), dtype=torch.float64)

    def normal(self, features: Tensor) -> Tensor:
        """Bring the columns to one scale; a missing value (NaN) is the mean."""
        spread = torch.asinh(features.index_select(1, self.columns).double())
        return torch.addcmul(self.shift, spread, self.scale).nan_to_num(0.0, _LIMIT, -_LIMIT)

    def forward(self, normal: Tensor) -> Tensor:
        """Rebuild columns on that scale."""
        return self.third(torch.relu(self.second(torch.relu(self.first(normal)))))


class Strangeness(nn.Module):
    """Tells how strange rows are: the log of the length of a row's errors, each in units of its column's usual one; float64 [n].

    The trained network in as few operations as it takes, because for one row each costs as much as its arithmetic: the usual
    errors are folded into the layers; the last unit of the second layer is always 1 and carries the bias of the third, so that
    one `addmm` rebuilds the columns and subtracts them.

    In float64: BLAS adds in another order for one row than for many, and the combiner's float32 hides it. So a row's score
    does not depend on the rows beside it.

    Args:
        trained: the network.
        usual: [columns], the root of each column's usual squared error, on the network's scale.
    """

    def __init__(self, trained: AutoEncoder, usual: Tensor) -> None:
        super().__init__()
        self.feature_names = trained.feature_names
        """Read by torch_server, and held against the columns that `ensemble.yaml` names."""
        self.limit = _LIMIT
        weight = 1 / (usual * len(usual) ** 0.5)
        first, second, third = trained.first, trained.second, trained.third
        self.columns = nn.Buffer(trained.columns)
        self.scale = nn.Buffer(trained.scale * weight)
        self.shift = nn.Buffer(trained.shift * weight)
        self.weights_1 = nn.Buffer((first.weight / weight).T.contiguous())
        self.bias_1 = nn.Buffer(first.bias)
        self.weights_2 = nn.Buffer(nn.functional.pad(second.weight.T, (0, 1)).contiguous())
        self.bias_2 = nn.Buffer(nn.functional.pad(second.bias, (0, 1), value=1.0))
        self.weights_3 = nn.Buffer(torch.cat([third.weight.T, third.bias[None]]) * weight)

    def forward(self, features: Tensor) -> Tensor:
        """Higher is stranger; features float32 [n, F], NaN where not known."""
        spread = torch.asinh(features.index_select(1, self.columns).double())
        normal = torch.addcmul(self.shift, spread, self.scale).nan_to_num(0.0, self.limit, -self.limit)
        hidden = torch.relu(torch.addmm(self.bias_1, normal, self.weights_1))
        hidden = torch.relu(torch.addmm(self.bias_2, hidden, self.weights_2))
        errors = torch.addmm(normal, hidden, self.weights_3, beta=-1)
        return torch.log(torch.linalg.vector_norm(errors, 2, [1]))


def train_autoencoder(genuine: np.ndarray, seed: int, names: Sequence[str] = FEATURE_NAMES) -> Strangeness:
    """Train on float32 [n, F] features of genuine transactions; the same rows and seed give the same network."""
    torch.set_num_threads(1)  # sums are then in one order
    torch.manual_seed(seed)
    model = AutoEncoder(names, genuine)
    rows = model.normal(torch.from_numpy(genuine))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _EPOCHS * -(-len(rows) // _ROWS))
    for epoch in range(_EPOCHS):
        total = 0.0
        for part in torch.randperm(len(rows)).split(_ROWS):
            wanted = rows[part]
            loss = (model(wanted + _NOISE * torch.randn_like(wanted)) - wanted).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(part)
        _log.debug("auto-encoder: epoch %d of %d, squared error %.4f", epoch + 1, _EPOCHS, total / len(rows))
    with torch.no_grad():  # in units of its usual error, so that no column is the whole of it
        usual = (model(rows) - rows).square().mean(0).clamp_min(1e-3).sqrt()
        return Strangeness(model, usual).eval()


def strangeness(model: Strangeness, features: np.ndarray) -> np.ndarray:
    """What the member answers for float32 [n, F] features: float64 [n]."""
    with torch.inference_mode():
        return model(torch.from_numpy(features)).numpy()


def save(model: Strangeness, path: Path) -> None:
    """Write the network as frozen TorchScript: constants and a graph, no pickled Python, no path of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.export's programs take twice as long for one row
        scripted = torch.jit.freeze(torch.jit.script(model), preserved_attrs=["feature_names"])
        whole = io.BytesIO(scripted.save_to_buffer())
    # Beside the graph PyTorch writes which line of which source file each operation came from; loading does without.
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w") as kept:
        for record in archive.infolist():
            if not record.filename.endswith(".debug_pkl"):
                kept.writestr(zipfile.ZipInfo(record.filename), archive.read(record))
