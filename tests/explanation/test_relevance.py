"""The methods against plain implementations of their papers, and what the function promises around them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Dinov2Config, DINOv3ViTConfig

from retfound_hf import RetFoundModel
from retfound_hf.errors import BadArgumentError, BadDataError, BadModelError
from retfound_hf.explanation.relevance import METHODS, relevance
from retfound_hf.models.backbones import StockEncoderConfig, StockEncoderForImageClassification

ATTENTION = ("relevance", "rollout")
ANY_MODEL = [method for method in METHODS if method != "relprop"]


def plain_attention(model, pixels: Tensor, target: int) -> tuple[list[Tensor], list[Tensor]]:
    """Attention and its gradient of one image, caught at the softmax of the eager path."""
    kept: list[Tensor] = []
    model.set_attn_implementation("eager")
    softmax = torch.nn.functional.softmax

    def recording(*args, **kwargs):
        weights = softmax(*args, **kwargs)
        weights.retain_grad()
        kept.append(weights)
        return weights

    torch.nn.functional.softmax = recording
    try:
        other = {"interpolate_pos_encoding": True} if pixels.shape[-1] != model.config.image_size else {}
        logits = model(pixels[None].clone().requires_grad_(), **other).logits
    finally:
        torch.nn.functional.softmax = softmax
    logits[0, target].backward()
    return [weights[0].detach() for weights in kept], [weights.grad[0] for weights in kept]


def plain_relevance(weights: list[Tensor], gradients: list[Tensor], rows: list[int]) -> Tensor:
    """Equations 5 and 6 of Chefer et al. (ICCV 2021) on whole matrices; the mean of `rows` less the identity."""
    tokens = weights[0].shape[-1]
    found = torch.eye(tokens)
    for block, gradient in zip(weights, gradients, strict=True):
        positive = torch.zeros(tokens, tokens)
        for head in range(len(block)):
            positive += torch.relu(block[head] * gradient[head]) / len(block)
        found = found + positive @ found
    return (found - torch.eye(tokens))[rows].mean(dim=0)


@pytest.mark.parametrize("head_norm", ["single", "double"])
@pytest.mark.parametrize("size", [32, 48])
def test_relevance_equals_a_plain_implementation(classifier, images, head_norm, size):
    model = classifier(head_norm=head_norm)
    pixels = images(3, size)
    found = relevance(model, pixels, target=[2, 0, 1])
    grid = size // 8
    assert found.patches.shape == (3, grid, grid) and found.patches.dtype == torch.float32
    for index, target in enumerate([2, 0, 1]):
        kept = plain_attention(model, pixels[index], target)
        plain = plain_relevance(*kept, rows=list(range(1, 1 + grid**2)))
        torch.testing.assert_close(found.patches[index].flatten(), plain[1:], rtol=1e-4, atol=1e-10)
    assert found.patches.min() >= 0 and found.patches.max() > 0


def test_the_class_token_is_read_where_the_head_reads_it(stock, images):
    model = stock("vit")
    pixels = images(1)
    found = relevance(model, pixels, target=1)
    plain = plain_relevance(*plain_attention(model, pixels[0], 1), rows=[0])
    torch.testing.assert_close(found.patches[0].flatten(), plain[1:], rtol=1e-4, atol=1e-10)


def test_rollout_equals_a_plain_implementation(classifier, images):
    model = classifier()
    pixels = images(2)
    found = relevance(model, pixels, method="rollout")
    for index in range(2):
        weights, _ = plain_attention(model, pixels[index], 0)
        joint = torch.eye(17)
        for block in weights:
            mixed = block.mean(dim=0) + torch.eye(17)
            joint = (mixed / mixed.sum(dim=-1, keepdim=True)) @ joint
        torch.testing.assert_close(found.patches[index].flatten(), joint[1:].mean(dim=0)[1:], rtol=1e-4, atol=1e-8)


def test_integrated_gradients_add_up_to_the_difference_of_logits(classifier, images):
    model = classifier()
    pixels = images(3)
    found = relevance(model, pixels, target=2, method="integrated_gradients", steps=64)
    with torch.no_grad():
        rise = model(pixels).logits[:, 2] - model(torch.zeros_like(pixels)).logits[:, 2]
    torch.testing.assert_close(found.patches.sum(dim=(1, 2)), rise, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_has_the_same_map_in_any_batch(classifier, images, method):
    model, pixels = classifier(), images(4)
    together = relevance(model, pixels, target=[0, 1, 2, 0], method=method, steps=8).patches
    for index, target in enumerate([0, 1, 2, 0]):
        alone = relevance(model, pixels[index : index + 1], target=target, method=method, steps=8).patches[0]
        torch.testing.assert_close(alone, together[index], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_are_equal(classifier, images, method):
    model = classifier()
    first, second = (relevance(model, images(), method=method, steps=8).patches for _ in range(2))
    assert torch.equal(first, second)


def test_targets_by_name_by_index_and_predicted(classifier, images):
    model, pixels = classifier(), images(3)
    with torch.no_grad():
        logits = model(pixels).logits
    predicted = relevance(model, pixels)
    assert torch.equal(predicted.targets, logits.argmax(dim=1))
    torch.testing.assert_close(predicted.logits, logits, rtol=1e-5, atol=1e-6)
    named = relevance(model, pixels, target=["severe", "mild", "none"])
    assert named.targets.tolist() == [2, 0, 1]
    assert torch.equal(named.patches, relevance(model, pixels, target=torch.tensor([2, 0, 1])).patches)
    assert not torch.allclose(named.patches, relevance(model, pixels, target="none").patches)


def test_multi_label_and_regression(classifier, images):
    model = classifier(problem_type="multi_label_classification")
    assert torch.equal(relevance(model, images()).targets, model(images()).logits.argmax(dim=1))
    one = classifier(problem_type="regression", id2label={0: "age"}, label2id={"age": 0})
    assert relevance(one, images()).targets.tolist() == [0, 0]
    several = classifier(problem_type="regression")
    assert relevance(several, images(), target="none").targets.tolist() == [1, 1]
    with pytest.raises(BadArgumentError) as error:
        relevance(several, images())
    assert error.value.accepted == ("mild", "none", "severe")


@pytest.mark.parametrize("kind", ["vit", "dinov2", "registers", "deit"])
@pytest.mark.parametrize("method", ANY_MODEL)
@pytest.mark.parametrize("size", [32, 48])
def test_stock_classifiers(stock, images, kind, method, size):
    found = relevance(stock(kind), images(2, size), method=method, steps=4)
    assert found.patches.shape == (2, size // 8, size // 8)
    assert found.patches.isfinite().all() and found.patches.abs().max() > 0


@pytest.mark.parametrize("kind", ["resnet", "swin"])
@pytest.mark.parametrize("method", ATTENTION)
def test_architectures_without_attention_among_patches_are_refused(stock, images, kind, method):
    with pytest.raises(BadModelError):
        relevance(stock(kind), images(), method=method)
    assert relevance(stock(kind), images(), method="integrated_gradients", steps=2).patches.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_adapters_give_the_maps_of_the_merged_model(classifier, images, method):
    lora = LoraConfig(
        r=4, target_modules=["query", "value"], modules_to_save=["fc_norm", "classifier"], init_lora_weights=False
    )
    model = get_peft_model(classifier(), lora).eval()
    adapted = relevance(model, images(), target=1, method=method, steps=8)
    assert not torch.allclose(adapted.patches, relevance(classifier(), images(), 1, method, steps=8).patches)
    merged = relevance(model.merge_and_unload(), images(), target=1, method=method, steps=8)
    torch.testing.assert_close(adapted.patches, merged.patches, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_weights(classifier, images, dtype, method):
    full = relevance(classifier(), images(), target=1, method=method, steps=8).patches.flatten()
    half = relevance(classifier().to(dtype), images(), target=1, method=method, steps=8).patches.flatten()
    assert half.dtype == torch.float32
    # Shares of sums near zero, which relprop takes, feel every rounding of the weights.
    assert torch.corrcoef(torch.stack([full, half]))[0, 1] > (0.8 if method == "relprop" else 0.98)


@pytest.mark.parametrize(
    "change, field",
    [
        ({"method": "relevence"}, "method"),
        ({"target": "sever"}, "target"),
        ({"target": 3}, "target"),
        ({"target": [0, 1, 2]}, "target"),
        ({"steps": 0, "method": "integrated_gradients"}, "steps"),
    ],
)
def test_bad_arguments_are_named(classifier, images, change, field):
    with pytest.raises(BadArgumentError) as error:
        relevance(classifier(), images(), **change)
    assert error.value.field == field and "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(2, 3, 30, 30), (3, 32, 32)])
def test_bad_images_are_refused(classifier, shape):
    with pytest.raises(BadDataError):
        relevance(classifier(), torch.zeros(shape))


def test_a_model_without_classes_is_refused(classifier, images):
    with pytest.raises(BadModelError):
        relevance(RetFoundModel(classifier().config), images())


def test_maps_at_the_size_of_the_input(classifier, images):
    found = relevance(classifier(), images())
    large = found.at_size(32)
    assert large.shape == (2, 32, 32)
    torch.testing.assert_close(large.mean(dim=(1, 2)), found.patches.mean(dim=(1, 2)), rtol=0.1, atol=0)


WRAPPED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    "encoder_config",
    [Dinov2Config(**WRAPPED, mlp_ratio=2), DINOv3ViTConfig(**WRAPPED, intermediate_size=64, num_register_tokens=3)],
    ids=["dinov2", "dinov3"],
)
@pytest.mark.parametrize("method", ["relevance", "rollout", "integrated_gradients"])
def test_maps_lie_on_the_patches(encoder_config, method):
    torch.manual_seed(0)
    model = StockEncoderForImageClassification(StockEncoderConfig(encoder_config=encoder_config, num_labels=3)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    found = relevance(model, torch.randn(2, 3, 32, 32), method=method).patches
    assert found.shape == (2, 4, 4)  # 16 patches, whatever class and register tokens stand before them
    assert found.isfinite().all()
    assert found.std() > 0
    assert model.config._attn_implementation == "sdpa"
