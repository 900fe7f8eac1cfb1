"""The shape of a network: which layers, how wide, and what lies between them."""

from dataclasses import dataclass

LAYERS = ("sage", "gcn")


@dataclass(frozen=True)
class NetworkShape:
    """Convolutions of one kind, with BatchNorm, ReLU and Dropout between them.

    Raises:
        ValueError: if layer is unknown, or num_layers or a width is below 1.

    >>> NetworkShape("sage", 128, 256, 40, 3, dropout=0.5, batch_norm=True).widths
    (128, 256, 256, 40)
    """

    layer: str  # one of LAYERS
    num_features: int
    hidden: int
    num_classes: int
    num_layers: int
    dropout: float
    batch_norm: bool

    def __post_init__(self) -> None:
        """Refuse what no network has."""
        if self.layer not in LAYERS:
            raise ValueError(f"layer must be one of {LAYERS}, got {self.layer!r}")
        if self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
        if min(self.widths) < 1:
            raise ValueError(
                "num_features, hidden and num_classes must be at least 1, got "
                f"{self.num_features}, {self.hidden} and {self.num_classes}"
            )

    @property
    def num_hidden(self) -> int:
        """Layers whose output is normalised, rectified and dropped from."""
        return self.num_layers - 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Features before the first layer and after each."""
        return self.num_features, *[self.hidden] * self.num_hidden, self.num_classes


@dataclass(frozen=True)
class ClassShape:
    """A network of somebody else's: a class and what it is made with."""

    class_name: str  # dotted, "torch_geometric.nn.GAT"
    arguments: str  # JSON; in_channels and out_channels are the graph's
    input: str  # "edges": edge_index; "matrix": a sparse CSR matrix, row by receiver
    num_features: int
    num_classes: int
