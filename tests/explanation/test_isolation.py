"""Explaining a model leaves nothing behind, and two at once do not disturb each other."""

import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model

from retfound_hf.errors import RetFoundError
from retfound_hf.explanation.explain import paint
from retfound_hf.explanation.relevance import METHODS, relevance


def state_of(model) -> dict:
    modules = dict(model.named_modules())
    return {
        "training": {name: module.training for name, module in modules.items()},
        "hooks": {
            name: [len(getattr(module, kind)) for kind in vars(module) if kind.endswith("_hooks")]
            for name, module in modules.items()
        },
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "grads": [name for name, parameter in model.named_parameters() if parameter.grad is not None],
        "weights": {name: (value.data_ptr(), value.sum().item()) for name, value in model.state_dict().items()},
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "forward": [name for name, module in modules.items() if "forward" in vars(module)],
    }


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in ("retfound", "lora", "frozen") for method in METHODS]
    + [(kind, method) for kind in ("vit", "dinov2") for method in METHODS if method != "relprop"],
)
def test_the_model_is_left_as_it_was(classifier, stock, images, kind, method):
    model = classifier(drop_path_rate=0.2) if kind in ("retfound", "lora", "frozen") else stock(kind)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
    if kind == "frozen":
        model.requires_grad_(False)
    model.gradient_checkpointing_enable()
    model.train()
    next(iter(model.children())).eval()
    before, pixels = state_of(model), images(2)
    relevance(model, pixels, method=method, steps=2)
    with pytest.raises(RetFoundError):
        relevance(model, pixels, target="nobody", method=method)
    assert state_of(model) == before
    assert not pixels.requires_grad and torch.equal(pixels, images(2))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", METHODS)
def test_mode_and_surroundings_do_not_change_the_map(classifier, images, method):
    expected = relevance(classifier(), images(), 1, method, steps=4).patches
    for implementation in ("eager", "sdpa"):
        model = classifier(drop_path_rate=0.5, hidden_dropout_prob=0.3).train()
        model.set_attn_implementation(implementation)
        model.gradient_checkpointing_enable()
        with torch.no_grad():
            found = relevance(model, images(), 1, method, steps=4).patches
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
        with torch.inference_mode():
            found = relevance(model, images(), 1, method, steps=4).patches
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
        frozen = model.requires_grad_(False)
        torch.testing.assert_close(
            relevance(frozen, images(), 1, method, steps=4).patches, expected, rtol=1e-4, atol=1e-8
        )


def test_a_compiled_model_is_unwrapped(classifier, images):
    expected = relevance(classifier(), images(), 1).patches
    assert torch.equal(relevance(torch.compile(classifier()), images(), 1).patches, expected)


def test_threads_share_one_model(classifier, images):
    """Two users of a page: different methods, classes and images at the same time, next to plain predictions."""
    model = classifier()
    jobs = [(images(2, seed=seed), seed % 3, METHODS[seed % 3]) for seed in range(6)]
    expected = [relevance(model, *job).patches for job in jobs]
    with torch.no_grad():
        logits = model(jobs[0][0]).logits
    wrong: list[str] = []
    start = threading.Barrier(len(jobs) + 1)

    def explain(index: int) -> None:
        start.wait()
        for _ in range(8):
            if not torch.equal(relevance(model, *jobs[index]).patches, expected[index]):
                wrong.append(f"map {index}")

    def predict() -> None:
        start.wait()
        for _ in range(40):
            with torch.no_grad():
                if not torch.equal(model(jobs[0][0]).logits, logits):
                    wrong.append("prediction")

    threads = [threading.Thread(target=explain, args=(index,)) for index in range(len(jobs))]
    threads.append(threading.Thread(target=predict))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert model.config._attn_implementation == "sdpa"


def test_painting_leaves_the_autoencoder_as_it_was(autoencoder, processor, images):
    model = autoencoder().train()
    before = state_of(model)
    paint(model, images(2), ["a", "b"], processor, mask_ratio=0.3)
    assert state_of(model) == before
