"""LoRA through peft, without code of the user's own."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.utils import logging

from retfound_hf import RetFoundForImageClassification

# peft asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
HEAD = ["fc_norm", "classifier"]


@pytest.fixture
def base(pretraining_folder):
    """The classifier on one pretrained folder; a fresh head at every call."""
    folder = pretraining_folder()
    return lambda: RetFoundForImageClassification.from_pretrained(folder, num_labels=3)


@pytest.fixture
def trained(base, images):
    """An adapter whose every weight has moved from where it began."""
    model = get_peft_model(base(), LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=HEAD))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(images(), labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
    return model.eval()


def test_bare_configuration_finds_query_and_value(base):
    model = get_peft_model(base(), LoraConfig())
    adapted = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {"query", "value"}
    assert sum(hasattr(module, "lora_A") for module in model.modules()) == 2 * 3


def test_exactly_the_adapter_and_the_head_are_trained(base):
    model = get_peft_model(base(), LoraConfig(target_modules=["query", "value"], modules_to_save=HEAD))
    prefix = "base_model.model."
    expected = {
        f"{prefix}vit.encoder.layer.{layer}.attention.attention.{part}.lora_{side}.default.weight"
        for layer in range(3)
        for part in ("query", "value")
        for side in "AB"
    } | {f"{prefix}{part}.modules_to_save.default.{kind}" for part in HEAD for kind in ("weight", "bias")}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected


def test_adapter_with_its_head_survives_saving(trained, base, images, tmp_path):
    expected = trained(images()).logits
    trained.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 100_000
    fresh = base()
    assert not torch.allclose(fresh.eval()(images()).logits, expected, atol=1e-2)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(loaded(images()).logits, expected, atol=1e-6, rtol=1e-6)


def test_merging_gives_the_same_outputs(trained, images, tmp_path):
    expected = trained(images()).logits
    with trained.disable_adapter():
        assert not torch.allclose(trained(images()).logits, expected, atol=1e-2)
    merged = trained.merge_and_unload()
    assert type(merged) is RetFoundForImageClassification
    torch.testing.assert_close(merged(images()).logits, expected, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path)
    plain, report = RetFoundForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(plain.eval()(images()).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("modules", "warns"), [(None, True), (HEAD, False)])
def test_training_a_frozen_head_warns(modules, warns, base, images, caplog, monkeypatch):
    logger = logging.get_logger("retfound_hf.models.modeling_retfound")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    logger.warning_once.cache_clear()
    model = get_peft_model(base(), LoraConfig(modules_to_save=modules)).train()
    with caplog.at_level("WARNING"):
        model(images(), labels=torch.tensor([0, 1]))
    said = [record.getMessage() for record in caplog.records if "frozen classifier" in record.getMessage()]
    assert len(said) == warns
    assert not said or "modules_to_save=['fc_norm', 'classifier']" in said[0]
