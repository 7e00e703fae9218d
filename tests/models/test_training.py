"""Training: gradients, checkpointing, compilation, and a bare `transformers.Trainer`."""

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel


class Patterns(Dataset):
    """Images that are bright on the left (class 0) or on the right (class 1)."""

    def __init__(self, length: int):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(length) % 2
        self.pixels = torch.randn(length, 3, 64, 64, generator=generator)
        side = torch.where(torch.arange(64) < 32, 1.0, -1.0)
        self.pixels += side * (1 - 2 * self.labels.float())[:, None, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_classifier_trains_its_positions_and_leaves_the_unused_norm(small_config):
    model = RetFoundForImageClassification(small_config())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vit.layernorm.weight", "vit.layernorm.bias"}


def test_the_same_parameters_are_frozen_after_loading(pretraining_folder):
    model = RetFoundForImageClassification.from_pretrained(pretraining_folder())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vit.layernorm.weight", "vit.layernorm.bias"}
    autoencoder = RetFoundForPreTraining.from_pretrained(pretraining_folder())
    frozen = {name for name, parameter in autoencoder.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}


@pytest.mark.parametrize("head_norm", ["single", "double"])
def test_every_trainable_parameter_gets_a_gradient(small_config, randomise, images, head_norm):
    """Distributed data parallel waits for ever for one that does not."""
    model = randomise(RetFoundForImageClassification(small_config(head_norm=head_norm, drop_path_rate=0.2))).train()
    model(images(), labels=torch.tensor([0, 1])).loss.backward()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(gradients(model)) == trainable


@pytest.mark.parametrize("head_norm", ["single", "double"])
def test_logits_are_head_of_norm_of_mean(small_config, randomise, images, head_norm):
    model = randomise(RetFoundForImageClassification(small_config(head_norm=head_norm, num_labels=3)))
    mean = model.vit(images(), output_hidden_states=True).hidden_states[-1][:, 1:].mean(dim=1)
    features = model.fc_norm(mean) if head_norm == "single" else model.fc_norm(model.fc_norm(mean))
    expected = features @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(images()).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("cls", [RetFoundForImageClassification, RetFoundForPreTraining])
def test_gradient_checkpointing_changes_no_number(cls, small_config, randomise, images):
    model = randomise(cls(small_config(drop_path_rate=0.3))).train()
    inputs = {"pixel_values": images(4)}
    if cls is RetFoundForImageClassification:
        inputs["labels"] = torch.tensor([0, 1, 1, 0])
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        runs = []
        hook = model.vit.encoder.layer[0].layernorm_before.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        model.zero_grad()
        torch.manual_seed(5)
        loss = model(**inputs).loss
        loss.backward()
        hook.remove()
        results.append((loss, gradients(model), len(runs)))
    (loss, expected, once), (again, found, twice) = results
    assert (once, twice) == (1, 2)
    torch.testing.assert_close(again, loss, atol=0, rtol=0)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cls", [RetFoundModel, RetFoundForImageClassification])
def test_compiles_without_graph_break(cls, training, small_config, randomise, images):
    torch._dynamo.reset()
    model = randomise(cls(small_config())).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    name = "last_hidden_state" if cls is RetFoundModel else "logits"
    torch.testing.assert_close(compiled(images())[name], model(images())[name], atol=1e-5, rtol=1e-5)
    assert torch._dynamo.explain(model)(images()).graph_break_count == 0


def test_compiles_with_drop_path_and_loss(small_config, images):
    torch._dynamo.reset()
    model = RetFoundForImageClassification(small_config(drop_path_rate=0.2)).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(images(), labels=torch.tensor([0, 1])).loss.backward()
    assert model.classifier.weight.grad.abs().max() > 0


def test_compiled_graph_serves_every_batch_size(small_config, images):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(RetFoundModel(small_config()).eval(), fullgraph=True, dynamic=True, backend=backend)
    for batch in (2, 3, 5, 8):
        assert compiled(images(batch)).pooler_output.shape == (batch, 64)
    assert len(graphs) == 1


def arguments(folder, **overrides) -> TrainingArguments:
    values = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "learning_rate": 1e-3, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "seed": 0,
        "per_device_train_batch_size": 4, "max_steps": 1, "logging_steps": 1, "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**{**values, **overrides})


def test_bare_trainer_learns(small_config, tmp_path):
    torch.manual_seed(0)
    model = RetFoundForImageClassification(small_config(drop_path_rate=0.1))
    settings = arguments(tmp_path, max_steps=30, per_device_train_batch_size=8, per_device_eval_batch_size=16)
    trainer = Trainer(model, settings, train_dataset=Patterns(32), eval_dataset=Patterns(32))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(0.6931, abs=0.01)  # ln 2: an untrained head favours no class
    predictions = trainer.predict(Patterns(32))
    assert (predictions.predictions.argmax(axis=1) == predictions.label_ids).mean() > 0.9
    trainer.save_model(tmp_path / "best")
    loaded = RetFoundForImageClassification.from_pretrained(tmp_path / "best").eval()
    with torch.no_grad():
        logits = loaded(Patterns(32).pixels).logits
    torch.testing.assert_close(logits, torch.from_numpy(predictions.predictions), atol=1e-5, rtol=1e-5)


def test_gradient_accumulation_equals_a_larger_batch(small_config, randomise, tmp_path):
    """Plain gradient descent shows the gradient itself: a loss not divided by the steps would double it."""
    start = randomise(RetFoundForImageClassification(small_config()))
    updates = []
    for batch, steps in ((8, 1), (4, 2), (2, 4)):
        model = RetFoundForImageClassification(small_config())
        model.load_state_dict(start.state_dict())
        settings = arguments(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, learning_rate=0.1
        )
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        Trainer(model, settings, train_dataset=Patterns(8), optimizers=(optimizer, None)).train()
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        updates.append(torch.cat([(after - before).flatten() for after, before in pairs]).detach())
    assert updates[0].abs().max() > 1e-3
    for update in updates[1:]:
        torch.testing.assert_close(update, updates[0], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_keeps_the_digits_of_a_predicted_number(small_config, images, dtype):
    config = small_config(num_labels=1, problem_type="regression")
    model = RetFoundForImageClassification(config).eval()
    with torch.no_grad():
        model.classifier.bias.fill_(331.1)  # micrometres, of which bfloat16 knows every second one
        expected = model(images()).logits
        with torch.autocast("cpu", dtype):
            found = model(images()).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
    training = model.train()(images(), labels=torch.full((2,), 331.0))
    training.loss.backward()
    assert torch.isfinite(model.classifier.weight.grad).all()
