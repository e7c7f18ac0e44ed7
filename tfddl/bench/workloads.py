"""What is trained where the speed of training is measured."""

import dataclasses

from tfddl.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """A model, and the synthetic batch that a worker trains it on in every step."""

    model: str
    """Its name on the command line."""

    label: str
    image_size: int
    """Height and width, in pixels."""

    batch_size: int
    """Examples per worker and step."""

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 32:
            raise DataError(
                f"the image size is {self.image_size}; it must be a multiple of 32, which all "
                "models can halve as often as they do."
            )
        if self.batch_size < 1:
            raise DataError(f"the batch size is {self.batch_size}; it must be at least 1.")

    def describe(self) -> str:
        """Model, image size and batch size, for captions."""
        return f"{self.label}, {self.image_size} x {self.image_size}, batch {self.batch_size}"


WORKLOADS = {
    workload.model: workload
    for workload in (
        Workload(model="unet", label="U-Net 8..128", image_size=128, batch_size=8),
        Workload(model="resnet50", label="ResNet-50", image_size=96, batch_size=8),
        Workload(model="mlp", label="four dense layers", image_size=32, batch_size=8),
    )
}
"""By the name of the model. The last one computes little and has large gradients: a hard case."""
