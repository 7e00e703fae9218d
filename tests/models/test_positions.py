import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForPreTraining, ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEEmbeddings,
    build_2d_sinusoidal_position_embedding,
)

from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel
from retfound_hf.models.modeling_retfound import positions_for_grid, sincos_positions


def formula(width: int, grid: int) -> np.ndarray:
    """The MAE paper's released convention, one number at a time: the first half of the channels is the column."""
    table = np.zeros((1 + grid * grid, width))
    quarter = width // 4
    for row in range(grid):
        for column in range(grid):
            token = 1 + row * grid + column
            for half, position in enumerate((column, row)):
                for i in range(quarter):
                    angle = position / 10000 ** (i / quarter)
                    table[token, 2 * half * quarter + i] = math.sin(angle)
                    table[token, (2 * half + 1) * quarter + i] = math.cos(angle)
    return table


def assert_true_tables(model: torch.nn.Module, grid: int = 4):
    tables = {name: value for name, value in model.named_parameters() if "pos" in name.rsplit(".", 1)[-1]}
    assert tables
    for name, value in tables.items():
        expected = formula(value.shape[-1], grid)
        assert value.shape == (1, *expected.shape), name
        np.testing.assert_allclose(value[0].detach().numpy(), expected, atol=1e-6, err_msg=name)
    return tables


def test_table_is_the_formula_at_the_published_size():
    np.testing.assert_allclose(sincos_positions(1024, 14)[0].numpy(), formula(1024, 14), atol=1e-6)
    assert sincos_positions(1024, 14).dtype == torch.float32


def test_table_is_the_stock_convention():
    stock = ViTMAEEmbeddings(ViTMAEConfig(hidden_size=64, image_size=96, patch_size=16))
    stock.initialize_weights()
    assert stock.position_embeddings.abs().max() > 0.9
    torch.testing.assert_close(sincos_positions(64, 6), stock.position_embeddings.detach(), atol=1e-6, rtol=0)
    rows_first = build_2d_sinusoidal_position_embedding(6, 6, embed_dim=64, cls_token=True)
    rotated = torch.cat([rows_first[:, 32:], rows_first[:, :32]], dim=1)
    torch.testing.assert_close(sincos_positions(64, 6)[0], rotated, atol=1e-6, rtol=0)


def test_both_tables_after_construction(small_config):
    assert len(assert_true_tables(RetFoundForPreTraining(small_config()))) == 2


def test_both_tables_after_from_config(small_config):
    assert len(assert_true_tables(AutoModelForPreTraining.from_config(small_config()))) == 2


@pytest.mark.parametrize("cls", [RetFoundModel, RetFoundForImageClassification])
def test_encoder_table_of_the_other_classes(small_config, cls):
    assert len(assert_true_tables(cls(small_config()))) == 1
    assert len(assert_true_tables(cls._from_config(small_config()))) == 1


def test_both_tables_after_save_and_load(small_config, tmp_path):
    RetFoundForPreTraining(small_config()).save_pretrained(tmp_path)
    assert len(assert_true_tables(AutoModelForPreTraining.from_pretrained(tmp_path))) == 2


def test_both_tables_when_the_file_lacks_them(small_config, tmp_path):
    """`from_pretrained` builds on the meta device, where a table computed at construction would be lost."""
    RetFoundForPreTraining(small_config()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "pos" not in name.rsplit(".", 1)[-1]}
    assert len(kept) == len(load_file(path)) - 2
    save_file(kept, path, metadata={"format": "pt"})
    model, report = RetFoundForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert len(report["missing_keys"]) == 2
    assert len(assert_true_tables(model)) == 2
    assert_true_tables(RetFoundForImageClassification.from_pretrained(tmp_path))
    assert_true_tables(RetFoundModel.from_pretrained(tmp_path))


def test_tables_differ_from_their_transposition():
    """Rows and columns are told apart: token (0, 1) is not token (1, 0)."""
    table = sincos_positions(64, 4)[0]
    assert (table[2] - table[5]).abs().max() > 0.5
    torch.testing.assert_close(table[2].roll(32), table[5])


def test_interpolation_is_exact_at_the_own_grid():
    table = torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0))
    assert positions_for_grid(table, 4) is table


def test_interpolation_keeps_the_class_token_and_equals_channelwise_resizing():
    table = torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0))
    resized = positions_for_grid(table, 6)
    assert resized.shape == (1, 37, 8)
    torch.testing.assert_close(resized[:, 0], table[:, 0], atol=0, rtol=0)
    for channel in range(8):
        plane = torch.nn.functional.interpolate(table[0, 1:, channel].view(1, 1, 4, 4), size=(6, 6), mode="bicubic")
        torch.testing.assert_close(resized[0, 1:, channel].view(6, 6), plane[0, 0])


def test_interpolation_keeps_the_axes_apart():
    """A table that grows along the rows only still does so on the new grid."""
    rows = torch.arange(8.0)[:, None].expand(8, 8).reshape(1, 64, 1)
    resized = positions_for_grid(torch.cat([torch.zeros(1, 1, 1), rows], dim=1), 16)[0, 1:, 0].view(16, 16)
    torch.testing.assert_close(resized, resized[:, :1].expand(16, 16))
    assert (resized[1:, 0] > resized[:-1, 0])[1:-1].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tables_are_interpolated_in_float32(dtype):
    table = sincos_positions(64, 4).to(dtype)
    resized = positions_for_grid(table, 7)
    assert resized.dtype == dtype
    expected = positions_for_grid(table.float(), 7).to(dtype)
    torch.testing.assert_close(resized, expected, atol=0, rtol=0)
