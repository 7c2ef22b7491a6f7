"""The adapted classifier as a plain ONNX model for any inference runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tinytl_edge.runtime.bundle import Manifest

from .graph import Array, GraphEditor


def inference_model(
    forward: ModelProto,
    manifest: Manifest,
    parameters: Mapping[str, Array],
    classes: Sequence[str],
    raw_pixels: bool = False,
) -> ModelProto:
    """forward.onnx with trained parameters put in and dropout taken out.

    Input `images` float32 [batch, 3, R, R], normalised by the mean and std in the metadata, or, with
    `raw_pixels`, uint8 [batch, R, R, 3] as a camera gives them. Output `logits` [batch, classes]. Metadata:
    classes (JSON), resolution, mean, std (of pixels in 0..255), labels: "one" (softmax) or "several" (a sigmoid each).
    """
    model = ModelProto()
    model.CopyFrom(forward)
    _put_parameters(model, parameters)
    _remove_dropout(model, [dropout.name for dropout in manifest.dropouts])
    if raw_pixels:
        _take_raw_pixels(model, manifest)
    helper.set_model_props(
        model,
        {
            "classes": json.dumps(list(classes), ensure_ascii=False),
            "resolution": str(manifest.resolution),
            "mean": json.dumps(list(manifest.mean)),
            "std": json.dumps(list(manifest.std)),
            "backbone": manifest.backbone,
            "method": manifest.method,
            "labels": manifest.labels,
        },
    )
    model.producer_name, model.producer_version = "tinytl-edge", manifest.created_by
    onnx.checker.check_model(model, full_check=True)
    return model


def _put_parameters(model: ModelProto, parameters: Mapping[str, Array]) -> None:
    editor = GraphEditor(model)
    for name, value in parameters.items():
        editor.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
    editor.finish()


def _remove_dropout(model: ModelProto, masks: Sequence[str]) -> None:
    editor = GraphEditor(model)
    for mask in masks:
        for product in editor.consumers.get(mask, []):
            kept = next(name for name in product.input if name != mask)
            editor.remove(product)
            editor.rename_uses(product.output[0], kept)
            editor.refresh()
    editor.finish()
    inputs = [value for value in model.graph.input if value.name not in masks]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _take_raw_pixels(model: ModelProto, manifest: Manifest) -> None:
    size = manifest.resolution
    editor = GraphEditor(model)
    editor.rename_uses("images", "preprocess/images")
    mean = editor.add_constant("preprocess/mean", np.array(manifest.mean, np.float32).reshape(3, 1, 1))
    std = editor.add_constant("preprocess/std", np.array(manifest.std, np.float32).reshape(3, 1, 1))
    floats = editor.add("Cast", ["images"], "preprocess/floats", to=TensorProto.FLOAT)
    planes = editor.add("Transpose", [floats], "preprocess/planes", perm=[0, 3, 1, 2])
    centred = editor.add("Sub", [planes, mean], "preprocess/centred")
    editor.add("Div", [centred, std], "preprocess/images", output="preprocess/images")
    editor.finish()
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3]))
