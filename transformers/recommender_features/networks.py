"""The two models, in PyTorch, with the inputs that `catalogue.TENSORS` names. Only training needs this module.

`Factors` knows each user by a vector of their own. `TwoTower` knows no user: its user tower reads features and history, so a new
rating changes the recommendations without a new training, and the item tower's vectors are fixed when it is exported.
"""

from __future__ import annotations

try:
    import torch
except ImportError as error:  # pragma: no cover # the environments that train have it
    raise ImportError("recommender_features.networks needs PyTorch: pip install 'serinus[torch-server]'") from error

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Factors", "TwoTower", "TwoTowerServed"]


class Factors(nn.Module):
    """Matrix factorisation: a vector for each user and item, and a bias for each item (Rendle et al. 2009, BPR)."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.users = nn.Embedding(users, width)
        self.items = nn.Embedding(items + 1, width)
        self.bias = nn.Parameter(torch.zeros(items + 1))
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.05)

    def pairwise(self, user: Tensor, liked: Tensor, other: Tensor, decay: float) -> Tensor:
        """BPR's loss: the liked item before the other one."""
        u, i, j = self.users(user), self.items(liked), self.items(other)
        margin = (u * (i - j)).sum(1) + self.bias[liked] - self.bias[other]
        size = u.square().sum(1) + i.square().sum(1) + j.square().sum(1)
        return (functional.softplus(-margin) + decay * size).mean()

    def every(self, user: Tensor) -> Tensor:
        """Scores of all items, [n, I + 1]."""
        return self.users(user) @ self.items.weight.T + self.bias

    def forward(self, user: Tensor, candidates: Tensor) -> Tensor:
        """Scores [n, C] of candidates [n, C] for users [n]."""
        return self.every(user).gather(1, candidates)


class TwoTower(nn.Module):
    """A user tower over history and features, an item tower over id, genres and year; trained by softmax over all items."""

    def __init__(self, item_features: Tensor, user_width: int, history: int, width: int, dropout: float) -> None:
        super().__init__()
        self.item_features = nn.Buffer(item_features)
        self.embedding = nn.Embedding(len(item_features), width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.item_side = nn.Linear(item_features.shape[1], width)
        self.bias = nn.Parameter(torch.zeros(len(item_features)))
        self.recency = nn.Parameter(torch.linspace(0, 2, history))
        """Weight of each place of the history before the softmax; learned, begins by preferring the latest."""
        self.user_side = nn.Linear(user_width, width)
        self.mix = nn.Sequential(
            nn.Linear(3 * width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def item_vectors(self) -> Tensor:
        """The item tower, [I + 1, d]."""
        return self.embedding.weight + self.item_side(self.item_features)

    def user_vectors(self, user_features: Tensor, history: Tensor, items: Tensor) -> Tensor:
        """The user tower, [n, d]; an empty history leaves the features alone."""
        known = history > 0
        if self.training:
            forgotten = torch.rand(history.shape) < 0.2  # so that no single item carries a user
            forgotten[:, -1] = False
            known = known & ~forgotten
        vectors = self.dropout(items[history]) * known[..., None]
        weights = torch.softmax(self.recency.masked_fill(~known, -1e9), 1)
        pooled = (weights[..., None] * vectors).sum(1)
        mean = vectors.sum(1) / known.sum(1, keepdim=True).clamp(min=1)
        return self.mix(torch.cat([pooled, mean, self.user_side(user_features)], 1)) + pooled

    def every(self, user_features: Tensor, history: Tensor) -> Tensor:
        """Scores of all items, [n, I + 1]."""
        items = self.item_vectors()
        return self.user_vectors(user_features, history, items) @ items.T + self.bias


class TwoTowerServed(nn.Module):
    """A trained `TwoTower` with its item vectors computed once."""

    def __init__(self, trained: TwoTower) -> None:
        super().__init__()
        self.trained = trained.eval()
        self.vectors = nn.Buffer(trained.item_vectors().detach())

    def forward(self, user_features: Tensor, history: Tensor, candidates: Tensor) -> Tensor:
        """Scores [n, C] of candidates [n, C]."""
        user = self.trained.user_vectors(user_features, history, self.vectors)
        return (user @ self.vectors.T + self.trained.bias).gather(1, candidates)
