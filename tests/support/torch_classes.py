"""Networks as PyTorch users write them: a server imports some by name, and only a test that needs PyTorch imports this."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NAMES = [f"c{at}" for at in range(9)]


class Layers(torch.nn.Module):
    """What programs are made of: layers, a buffer, sizes, branches, a keyword argument, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 3)
        self.conv = torch.nn.Conv1d(3, 3, 3, padding="same")
        self.register_buffer("scale", torch.arange(3.0))

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = ids.shape[0] // 2 + 2 * ids.shape[1]
        hidden = self.linear(self.embedding(ids)) * self.scale + rows
        mixed = self.conv(hidden.transpose(1, 2))
        mixed = torch.cond(mixed.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (mixed,))
        return {"energy": torch.einsum("bcl,bcl->b", mixed, mixed), "top": hidden.topk(2, dim=-1).values}


class Twins(torch.nn.Module):
    """Inputs whose sizes are held to one another, which the program says as a guard."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])[0] + y[:, None]


class Reads(torch.nn.Module):
    """Maps a file of the machine into its answer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/passwd", False, 16, dtype=torch.uint8)[0]


class Writes(torch.nn.Module):
    """Writes what it is sent to a file."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "/tmp/serinus-test-written")
        return x


class Pair(torch.nn.Module):
    """Two inputs, two outputs by name."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": a + b, "difference": a - b}


class Narrow(torch.nn.Module):
    """Refuses all but three columns, and remembers its batches where it is not scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.linear(x), 1)


class Nested(torch.nn.Module):
    """Returns what no list of outputs can name."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return x, [x, x]


class Named(torch.nn.Module):
    """Knows what its columns are called."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_names = ["amount", "hour", "km"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1)


class Broken(torch.nn.Module):
    """Answers NaN."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, 0] * float("nan")


class Net(nn.Module):
    """Every step that there is; `change` stands for what other networks do otherwise."""

    def __init__(
        self, widths: tuple[int, int, int] = (5, 16, 7), seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def made(*shape: int) -> nn.Buffer:
            return nn.Buffer(torch.randn(*shape, generator=generator, dtype=dtype))

        width, first, second = widths
        self.feature_names = NAMES
        self.columns = nn.Buffer(torch.randperm(9, generator=generator)[:width])
        self.shift, self.scale = made(width), made(width)
        self.w1, self.b1, self.w2, self.b2, self.w3 = (
            made(width, first), made(first), made(first, second), made(second), made(second, width),
        )  # fmt: skip

    def normal(self, features: Tensor) -> Tensor:
        return torch.addcmul(self.shift, torch.asinh(features.index_select(1, self.columns).double()), self.scale)

    def forward(self, features: Tensor) -> Tensor:
        normal = self.normal(features).nan_to_num(0.5, 3.0, -3.0)
        hidden = torch.relu(torch.addmm(self.b1, normal, self.w1))
        hidden = torch.relu(torch.addmm(self.b2, hidden, self.w2))
        return torch.log(torch.linalg.vector_norm(torch.addmm(normal, hidden, self.w3, beta=-1), 2, [1]))


class Scaled(Net):
    def forward(self, features: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.addmm(self.b1, self.normal(features), self.w1, alpha=2), 2, [1])


class OtherNorm(Net):
    def forward(self, features: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.normal(features), 1, [1])


class NoSum(Net):
    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.normal(features))


class OverRows(Net):
    def forward(self, features: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.normal(features), 2, [0])


class Earlier(Net):
    def forward(self, features: Tensor) -> Tensor:
        unused = torch.log(torch.linalg.vector_norm(self.normal(features), 2, [1]))
        return torch.linalg.vector_norm(torch.relu(self.normal(features)), 2, [1]) + unused


class Reduced(nn.Module):
    """What may follow the layers."""

    def __init__(self, layers: nn.Module, how: str) -> None:
        super().__init__()
        self.layers = layers
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers((x - 0.5) / 2.0)
        if self.how == "length":
            return torch.linalg.vector_norm(y, 2, [1])
        if self.how == "kept":
            return torch.linalg.vector_norm(y, 2, [-1], True)
        if self.how == "squeezed":
            return y.squeeze(-1)
        if self.how == "reshaped":
            return y.reshape(-1)
        return 2.0 * y + 1.0


class Mixed(torch.nn.Module):
    """Indices and numbers; its author calls the module otherwise than `self`."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(10, 4), nn.Linear(6, 1)

    def forward(this, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        return this.last(torch.cat([this.table(ids), dense], 1))
