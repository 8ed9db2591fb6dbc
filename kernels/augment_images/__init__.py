"""From stored frames to training images: one operation in several files; `operation.py` has the public functions."""

from .operation import augment_images, augment_images_bytes, move_maps

__all__ = ["augment_images", "augment_images_bytes", "move_maps"]
