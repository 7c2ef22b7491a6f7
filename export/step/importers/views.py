"""How an ONNX value lies in one of ours: the order of its elements, so that Reshape, Transpose and Slice cost nothing.

A view is an array of the ONNX value's shape (without batch) that holds for each element its number in our value's
memory [height, width, channels]. Reshaping, transposing and slicing an ONNX value does the same to that array;
layouts that cancel are found equal again, however they were spelled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinytl_edge.export.onnx_graph import Array

from ..ir import Shape


@dataclass(frozen=True)
class View:
    """An ONNX value that is (some of) the elements of our value `name`, of shape [height, width, channels]."""

    name: str
    shape: Shape
    order: Array

    @staticmethod
    def of_map(name: str, shape: Shape) -> View:
        """All of it, as ONNX has maps: [channels, height, width]."""
        return View(name, shape, _numbers(shape).transpose(2, 0, 1))

    @staticmethod
    def of_vector(name: str, shape: Shape) -> View:
        """A map of one pixel as [channels]."""
        return View(name, shape, _numbers(shape).reshape(-1))

    def like(self, name: str, shape: Shape | None = None) -> View:
        """The same order in another value (of the same shape)."""
        return View(name, shape or self.shape, self.order)

    def ordered(self, order: Array) -> View:
        """The same value with its elements in another order, or fewer of them."""
        return View(self.name, self.shape, order)

    @property
    def is_map(self) -> bool:
        """Is it all of our value as [channels, height, width], or any shape of a single pixel in its order?"""
        if self.shape[:2] == (1, 1):
            return self.is_whole
        height, width, channels = self.shape
        order = self.order
        return order.shape == (channels, height, width) and np.array_equal(
            order.transpose(1, 2, 0), _numbers(self.shape)
        )

    @property
    def is_whole(self) -> bool:
        """Is it all of our value in the order of its memory?"""
        return self.order.size == _size(self.shape) and np.array_equal(self.order.reshape(-1), _flat(self.shape))

    def channel_axis(self) -> int | None:
        """The axis along which the channels lie, the pixels being in their order along the others; or None."""
        if self.order.size != _size(self.shape):
            return None
        channels = self.shape[2]
        for axis in (0, self.order.ndim - 1):
            if self.order.shape[axis] == channels:
                last = np.moveaxis(self.order, axis, -1)
                if np.array_equal(last.reshape(-1), _flat(self.shape)):
                    return axis
        return None

    def selection(self) -> tuple[Array, Array, Array] | None:
        """Rows, columns and channels of which a [channels, height, width] is the product, or None."""
        _, width, channels = self.shape
        order = self.order if self.order.ndim == 3 else self.order[:, None, None] if self.order.ndim == 1 else None
        if order is None or order.size == 0:
            return None
        pixels, picked = np.divmod(order, channels)
        rows, columns = np.divmod(pixels, width)
        row, column, channel = rows[0, :, 0], columns[0, 0, :], picked[:, 0, 0]
        expected = (row[None, :, None] * width + column[None, None, :]) * channels + channel[:, None, None]
        return (row, column, channel) if np.array_equal(expected, order) else None


def _size(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _flat(shape: Shape) -> Array:
    return np.arange(_size(shape), dtype=np.int32)


def _numbers(shape: Shape) -> Array:
    return _flat(shape).reshape(shape)
