"""Training: gradients, stochastic depth, checkpointing, compilation, a bare `Trainer`, and LoRA."""

import importlib.util

import accelerate
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import save_stock
from torch.utils.data import Dataset
from torchvision.ops import StochasticDepth
from transformers import AutoModel, Trainer, TrainingArguments
from transformers.utils import logging
from two_processes import run_in_two

from retfound_hf import RetFoundConfig, RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel
from retfound_hf.models.loading import load_network, network_config, read_config


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


@pytest.mark.parametrize("head_norm", ["single", "double"])
def test_every_trainable_parameter_gets_a_gradient(small_config, randomise, images, head_norm):
    """Distributed data parallel waits for ever for one that does not."""
    model = randomise(RetFoundForImageClassification(small_config(head_norm=head_norm, drop_path_rate=0.2))).train()
    model(images(), labels=torch.tensor([0, 1])).loss.backward()
    without = {name for name, parameter in model.named_parameters()} - set(gradients(model))
    assert without == {"vit.layernorm.weight", "vit.layernorm.bias"}
    assert not any(model.get_parameter(name).requires_grad for name in without)


@pytest.mark.parametrize(
    ("options", "output", "unused"),
    [({}, "pooler_output", {"layernorm.weight", "layernorm.bias"}),
     ({"add_pooling_layer": False}, "last_hidden_state", set())],
)  # fmt: skip
def test_what_the_output_of_an_encoder_does_not_use_is_not_trained(
    pretraining_folder, images, options, output, unused
):
    for model in (
        AutoModel.from_pretrained(pretraining_folder(), **options).train(),
        RetFoundModel(RetFoundConfig.from_pretrained(pretraining_folder()), **options),
    ):
        model(images())[output].square().sum().backward()
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {"embeddings.position_embeddings"} | unused
        assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == frozen
        assert (model(images()).pooler_output is None) is ("add_pooling_layer" in options)


@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit"])
def test_a_wrapped_encoder_trains_what_its_outputs_use(kind, tmp_path):
    stored = read_config(str(save_stock(tmp_path, kind)))
    for classifier in (False, True):
        model, _ = load_network(str(tmp_path), stored, network_config(stored, num_labels=2), classifier)
        out = model.train()(torch.randn(2, 3, 32, 32))
        (out.logits if classifier else out.pooler_output).square().sum().backward()
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert [name for name, parameter in trained if parameter.grad is None] == []
        model.eval().config.return_dict = model.config.encoder_config.return_dict = False
        assert torch.equal(model(torch.ones(1, 3, 32, 32), return_dict=True)[0], model(torch.ones(1, 3, 32, 32))[0])


def inputs_of(cls, images) -> dict[str, torch.Tensor]:
    """Inputs of a model of `cls` that leave nothing to chance."""
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": images(), **({"noise": noise} if cls is RetFoundForPreTraining else {})}


CLASSES = [RetFoundModel, RetFoundForPreTraining, RetFoundForImageClassification]


@pytest.mark.parametrize("cls", CLASSES)
def test_weights_may_wait_in_another_place(cls, small_config, randomise, images, tmp_path):
    """Every module brings its weights for its own forward alone, as FSDP and DeepSpeed do too."""
    randomise(cls(small_config())).save_pretrained(tmp_path)
    given = inputs_of(cls, images)
    expected = cls.from_pretrained(tmp_path)(**given)[0]
    on_cpu = accelerate.cpu_offload(cls.from_pretrained(tmp_path), execution_device="cpu")
    on_disk = cls.from_pretrained(tmp_path, device_map={"": "disk"}, offload_folder=tmp_path / "offload")
    for model in (on_cpu, on_disk):
        assert next(model.parameters()).is_meta
        torch.testing.assert_close(model(**given)[0], expected, atol=0, rtol=0)


@pytest.mark.parametrize("cls", CLASSES)
def test_traced_model_gives_the_same_numbers(cls, small_config, randomise, images):
    model = randomise(cls(small_config())).requires_grad_(False)  # a closure traces nothing that requires gradients
    given = tuple(inputs_of(cls, images).values())
    traced = torch.jit.trace(lambda *inputs: model(*inputs)[0], given)
    torch.testing.assert_close(traced(*given), model(*given)[0], atol=0, rtol=0)
    if cls is not RetFoundForPreTraining:
        torch.testing.assert_close(traced(images(5)), model(images(5))[0], atol=1e-5, rtol=1e-5)
        interpolated = lambda pixels: model(pixels, interpolate_pos_encoding=True)[0]  # noqa: E731
        traced = torch.jit.trace(interpolated, (images(),))
        for size in (64, 96):
            found = traced(images(size=size))
            torch.testing.assert_close(found, interpolated(images(size=size)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", CLASSES)
def test_tuples_in_place_of_named_outputs(cls, small_config, randomise, images):
    """As programs ask for that trace a model, or read outputs by number."""
    model, given = randomise(cls(small_config())), inputs_of(cls, images)
    expected = model(**given).to_tuple()
    model.config.return_dict = False
    for found in (model(**given), model(**given, return_dict=False)):
        assert type(found) is tuple and len(found) == len(expected)
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_onnx_without_dynamo_and_graphs_of_tensorboard(small_config, randomise, images, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = randomise(RetFoundForImageClassification(small_config()))
    torch.onnx.export(
        model, (images(),), tmp_path / "model.onnx", dynamo=False, opset_version=17, input_names=["pixel_values"],
        output_names=["logits"], dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    found = torch.from_numpy(session.run(["logits"], {"pixel_values": images(3).numpy()})[0])
    torch.testing.assert_close(found, model(images(3)).logits, atol=1e-5, rtol=1e-5)
    with pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(tmp_path / "board")) as writer:
        writer.add_graph(model, images(), use_strict_trace=False)
    assert any(file.stat().st_size > 10_000 for file in (tmp_path / "board").iterdir())


SHARDED = """
import sys
import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining
import retfound_hf

folder, output, library = sys.argv[1:]
if library == "deepspeed":
    import deepspeed
    deepspeed.ops.__compatible_ops__ = dict.fromkeys(deepspeed.ops.__compatible_ops__, False)  # compile nothing
    deepspeed.init_distributed("gloo")
else:
    dist.init_process_group("gloo")
generator = torch.Generator().manual_seed(0)
pixels, noise = (torch.randn(2, *shape, generator=generator) for shape in ((3, 64, 64), (16,)))
labels = torch.tensor([0, 1])

class OnVectors(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder)
        torch.manual_seed(0)
        self.head = torch.nn.Linear(64, 3)

    def forward(self, pixel_values):
        return self.head(self.encoder(pixel_values).pooler_output)

def shard(model, version):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    if version == 1:
        return FullyShardedDataParallel(
            model, auto_wrap_policy=plugin.auto_wrap_policy, use_orig_params=True, device_id=torch.device("cpu")
        )
    mesh = init_device_mesh("cpu", (2,))
    for module in list(model.modules()):
        if isinstance(module, tuple(plugin.auto_wrap_policy.keywords["transformer_layer_cls"])):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)

def zero(model, optimizer):
    # Every parameter is shared out between the processes, however small.
    stage = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 1}
    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": stage, "gradient_clipping": 0.0}
    config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]

def two_steps(model, loss, engine=None):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    if engine:
        model = engine(model, optimizer)
        assert not any(p.numel() for p in model.parameters())
        for _ in range(2):
            losses.append(loss(model))
            model.backward(losses[-1])
            model.step()
        return [float(value) for value in losses]
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(loss(model))
        losses[-1].backward()
        optimizer.step()
    return [float(value) for value in losses]

def classified(model):
    return model(pixel_values=pixels, labels=labels).loss

def painted(model):
    return model(pixel_values=pixels, noise=noise).loss

def on_vectors(model):
    return torch.nn.functional.cross_entropy(model(pixels), labels)

found = {}
for name, make, loss in (
    ("classifier", lambda: AutoModelForImageClassification.from_pretrained(folder, num_labels=3), classified),
    ("autoencoder", lambda: AutoModelForPreTraining.from_pretrained(folder), painted),
    ("vectors", OnVectors, on_vectors),
):
    def seeded():
        torch.manual_seed(0)
        return make().train()
    found[name] = {"one": two_steps(seeded(), loss)}
    if library == "deepspeed":
        found[name]["zero 3"] = two_steps(seeded(), loss, zero)
        continue
    found[name]["ddp"] = two_steps(DistributedDataParallel(seeded()), loss)
    if name != "vectors":
        found[name] |= {f"fsdp{version}": two_steps(shard(seeded(), version), loss) for version in (1, 2)}
if dist.get_rank() == 0:
    torch.save(found, output)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torch", "deepspeed"])
def test_two_processes_train_as_one(library, pretraining_folder, tmp_path):
    """DDP, FSDP 1 and 2 with accelerate's own choice of modules, and ZeRO 3, on the same images in both processes."""
    if library == "deepspeed" and importlib.util.find_spec(library) is None:
        pytest.skip("needs deepspeed")  # whose import looks for compilers
    words = [str(pretraining_folder()), str(tmp_path / "found.pt"), library]
    run_in_two(SHARDED, words, tmp_path, DS_ACCELERATOR="cpu")
    for name, losses in torch.load(tmp_path / "found.pt").items():
        one = losses.pop("one")
        assert one[1] != pytest.approx(one[0], rel=1e-3), name
        for how, found in losses.items():
            assert found == pytest.approx(one, rel=1e-5), (name, how)


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
def test_compiles_without_graph_break(training, small_config, randomise, images):
    torch._dynamo.reset()
    model = randomise(RetFoundForImageClassification(small_config())).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images()).logits, model(images()).logits, atol=1e-5, rtol=1e-5)
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


def rates(model) -> list[float]:
    layers = [layer.drop_path for layer in model.vit.encoder.layer]
    return [layer.p if isinstance(layer, StochasticDepth) else 0.0 for layer in layers]


def test_rate_grows_linearly_over_the_blocks(small_config):
    model = RetFoundForImageClassification(small_config(num_hidden_layers=5, drop_path_rate=0.2))
    assert rates(model) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    published = torch.linspace(0, 0.2, 24).tolist()  # as the official code draws its rates
    with torch.device("meta"):
        large = RetFoundForImageClassification(small_config(num_hidden_layers=24, drop_path_rate=0.2))
    assert rates(large) == pytest.approx(published)


def test_decoder_drops_nothing(small_config):
    model = RetFoundForPreTraining(small_config(drop_path_rate=0.5))
    assert not any(isinstance(module, StochasticDepth) for module in model.decoder.modules())


def test_off_in_evaluation(small_config, randomise, images):
    model = randomise(RetFoundModel(small_config(drop_path_rate=0.9)))
    plain = RetFoundModel(small_config()).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(images()).last_hidden_state, plain(images()).last_hidden_state)
    assert not torch.equal(model.train()(images()).last_hidden_state, plain(images()).last_hidden_state)


def test_whole_branches_of_single_images_are_dropped(small_config, randomise):
    """With the MLP silenced, an image comes out as it went in (dropped) or plus branch / (1 - p) (kept)."""
    layer = randomise(RetFoundModel(small_config(num_hidden_layers=2, drop_path_rate=0.4))).encoder.layer[1]
    torch.nn.init.zeros_(layer.output.dense.weight)
    torch.nn.init.zeros_(layer.output.dense.bias)
    tokens = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)).expand(400, -1, -1)
    branch = layer(tokens)[0] - tokens
    torch.manual_seed(0)
    change = layer.train()(tokens)[0] - tokens
    dropped = change.abs().amax(dim=(1, 2)) == 0
    assert dropped.float().mean().item() == pytest.approx(0.4, abs=0.08)  # 3 standard errors
    torch.testing.assert_close(change[~dropped], branch[~dropped] / 0.6, atol=1e-5, rtol=1e-4)


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


def test_exactly_the_adapter_and_the_head_are_trained(base):
    model = get_peft_model(base(), LoraConfig(modules_to_save=HEAD))
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
