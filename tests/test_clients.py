"""Public notebooks and scripts in small: whatever works with a stock ViT works with ours, with the same numbers.

`test_every_way_agrees_with_evaluate` holds the table of retfound_hf/models/IN_YOUR_OWN_CODE.md.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from PIL import Image
from tiny import COLOURS, named, planted_image, save_autoencoder, save_classifier, save_stock
from torch.utils.data import DataLoader
from torchvision.transforms import CenterCrop, Compose, Normalize, RandomHorizontalFlip, Resize, ToTensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from two_processes import run_in_two

import retfound_hf as rf
from retfound_hf.hub.export import export
from retfound_hf.hub.remote_code import auto_maps, code_files

CLASSES = tuple(COLOURS)
GUIDE = Path(rf.__file__).parent / "models" / "IN_YOUR_OWN_CODE.md"
KINDS = pytest.mark.parametrize("kind", ["ours", "stock"])
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    """Pretrained folders of the same size: RETFound's and a stock ViT's."""
    place = tmp_path_factory.mktemp("bases")
    return {"ours": str(save_autoencoder(place / "ours")), "stock": str(save_stock(place / "stock", "vit"))}


@pytest.fixture(scope="module")
def planted() -> Dataset:
    """Images whose colour tells the class, as a set of the Hub holds them."""
    generator = np.random.default_rng(0)
    labels = [number % 3 for number in range(48)]
    images = [Image.fromarray(planted_image(CLASSES[label], generator)) for label in labels]
    return Dataset.from_dict({"image": images, "label": labels})


def settings(folder: Path, **options) -> TrainingArguments:
    usual = {"remove_unused_columns": False, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 0}
    quick = {"learning_rate": 3e-3, "per_device_train_batch_size": 8, "dataloader_pin_memory": False}
    return TrainingArguments(str(folder), save_strategy="no", logging_strategy="no", **usual | quick | options)


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    pixels = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}


def classifier_of(base: str):
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_pretrained(base, **named(CLASSES))


def transformed(data: Dataset, transform: Callable) -> Dataset:
    def apply(rows: dict) -> dict:
        return rows | {"pixel_values": [transform(image.convert("RGB")) for image in rows["image"]]}

    return data.with_transform(apply)


def of_classes(served: list[list[dict]]) -> torch.Tensor:
    """Probabilities (images, classes) of what a pipeline gives."""
    return torch.tensor([[{row["label"]: row["score"] for row in one}[name] for name in CLASSES] for one in served])


@KINDS
def test_image_classification_notebook(kind, bases, planted, tmp_path):
    """Transforms of torchvision that take `size` of the processor, `Trainer`, and a pipeline on what it saves."""
    as_these_transforms = {"do_fundus_crop": False, "do_center_crop": False} if kind == "ours" else {}
    processor = AutoImageProcessor.from_pretrained(bases[kind], **as_these_transforms)
    size = (processor.size["height"], processor.size["width"])
    to_pixels = [ToTensor(), Normalize(processor.image_mean, processor.image_std)]
    train = transformed(planted, Compose([Resize(size), RandomHorizontalFlip(), *to_pixels]))
    test = transformed(planted, Compose([Resize(size), CenterCrop(size), *to_pixels]))
    assert train[0]["pixel_values"].shape == processor(planted[0]["image"], return_tensors="pt").pixel_values[0].shape
    trainer = Trainer(
        classifier_of(bases[kind]), settings(tmp_path, num_train_epochs=12), train_dataset=train, eval_dataset=test,
        data_collator=collate, processing_class=processor,
    )  # fmt: skip
    trainer.train()
    scores = torch.from_numpy(trainer.predict(test).predictions).softmax(-1)
    assert (scores.argmax(-1) == torch.tensor(planted["label"])).float().mean() > 0.9
    trainer.save_model(tmp_path / "saved")
    served = of_classes(pipeline("image-classification", str(tmp_path / "saved"))(list(planted["image"])))
    assert (served - scores).abs().max() < 0.01  # the filters differ


@KINDS
def test_peft_notebook(kind, bases, planted, tmp_path):
    """`get_peft_model`, `Trainer`, `save_pretrained`, and the adapter on its base again."""
    processor = AutoImageProcessor.from_pretrained(bases[kind])
    pixels = processor(list(planted["image"]), return_tensors="pt").pixel_values
    model = get_peft_model(
        classifier_of(bases[kind]), LoraConfig(r=4, target_modules="all-linear", modules_to_save=["classifier"])
    )
    rows = [{"pixel_values": image, "label": label} for image, label in zip(pixels, planted["label"], strict=True)]
    trainer = Trainer(
        model, settings(tmp_path, max_steps=20, label_names=["labels"]), train_dataset=rows, eval_dataset=rows,
        data_collator=collate,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    model.save_pretrained(tmp_path / "adapter")
    base = PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path
    again = PeftModel.from_pretrained(classifier_of(base), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(pixel_values=pixels).logits, model.eval()(pixel_values=pixels).logits)


@KINDS
def test_accelerate_loop(kind, bases, planted):
    """The example without `Trainer`: a data loader, an optimiser and `Accelerator.prepare`."""
    processor = AutoImageProcessor.from_pretrained(bases[kind])
    data = transformed(planted, lambda image: processor(image, return_tensors="pt").pixel_values[0])
    accelerator, model = Accelerator(cpu=True), classifier_of(bases[kind])
    loader = DataLoader(data, batch_size=16, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=3e-3), loader)
    losses = []
    for _ in range(4):
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(accelerator.gather_for_metrics(loss.detach()).mean().item())
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@KINDS
def test_similarity_notebook(kind, bases, planted):
    """Vectors of a data set by `map`, and the nearest of a query, whatever the batches."""
    processor, model = AutoImageProcessor.from_pretrained(bases[kind]), AutoModel.from_pretrained(bases[kind]).eval()

    def vectors(rows: dict) -> dict:
        with torch.no_grad():
            outputs = model(**processor(rows["image"], return_tensors="pt"))
        return {"class_token": outputs.last_hidden_state[:, 0].numpy(), "pooled": outputs.pooler_output.numpy()}

    found = planted.map(vectors, batched=True, batch_size=20).with_format("torch")
    for name in ("class_token", "pooled"):
        table = torch.nn.functional.normalize(found[:][name], dim=-1)
        query = torch.from_numpy(vectors({"image": [planted[5]["image"]]})[name])
        similar = torch.nn.functional.normalize(query, dim=-1) @ table.T
        assert similar.argmax() == 5 and similar.max() == pytest.approx(1, abs=1e-5)


@KINDS
def test_distillation_notebook(kind, bases, planted, tmp_path):
    """A teacher within the loss of a `Trainer` that is subclassed."""
    processor, teacher = AutoImageProcessor.from_pretrained(bases[kind]), classifier_of(bases[kind]).eval()
    torch.nn.init.normal_(teacher.classifier.weight)
    pixels = processor(list(planted["image"]), return_tensors="pt").pixel_values
    rows = [{"pixel_values": image, "label": label} for image, label in zip(pixels, planted["label"], strict=True)]

    class Distilling(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            outputs = model(**inputs)
            with torch.no_grad():
                target = teacher(**inputs).logits.softmax(-1)
            loss = torch.nn.functional.kl_div(outputs.logits.log_softmax(-1), target, reduction="batchmean")
            return (loss, outputs) if return_outputs else loss

    trainer = Distilling(
        classifier_of(bases[kind]), settings(tmp_path, max_steps=20), train_dataset=rows, eval_dataset=rows,
        data_collator=collate,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2


@KINDS
def test_feature_extraction_pipeline(kind, bases, planted):
    image = planted[0]["image"]
    features = torch.tensor(pipeline("image-feature-extraction", bases[kind])(image))
    model, processor = AutoModel.from_pretrained(bases[kind]).eval(), AutoImageProcessor.from_pretrained(bases[kind])
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).last_hidden_state
    assert features.shape == (1, 17, 32)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def save_eyes(root: Path) -> list[Path]:
    """Labelled photographs: six with a dark surround, which is cut off, and six without."""
    generator, paths = np.random.default_rng(0), []
    for number in range(12):
        label = CLASSES[number % 3]
        pixels = planted_image(label, generator, side=90)
        if number < 6:
            y, x = np.mgrid[:90, :130]
            framed = np.full((90, 130, 3), 3, np.uint8)
            framed[:, 20:110] = pixels
            pixels = np.where((np.hypot(x - 65, y - 45) < 40)[..., None], framed, 3).astype(np.uint8)
        paths.append(root / "test" / label / f"{number:02d}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def clinic(tmp_path_factory) -> dict:
    """A classifier, labelled photographs (`paths`) and the probabilities of `evaluate`, by path."""
    place = tmp_path_factory.mktemp("clinic")
    folder, paths = save_classifier(place / "classifier", CLASSES), save_eyes(place / "images")
    said = rf.evaluate(folder, place / "images", dataloader_num_workers=0).predictions
    by_name = {Path(name).name: row for name, row in zip(said.ids, torch.from_numpy(said.scores), strict=True)}
    expected = torch.stack([by_name[path.name] for path in paths])
    assert tuple(said.class_names) == CLASSES and expected.std(dim=0).min() > 0.02
    processor, pictures = AutoImageProcessor.from_pretrained(folder), [Image.open(path) for path in paths]
    is_whole = [processor.crop_box(picture) == (0, 0, *picture.size) for picture in pictures]
    assert is_whole == [False] * 6 + [True] * 6
    return {"folder": str(folder), "paths": [str(path) for path in paths], "expected": expected}


def pixels_of(folder: str, paths: list[str]) -> torch.Tensor:
    return AutoImageProcessor.from_pretrained(folder)(paths, return_tensors="pt").pixel_values


def by_pipeline(folder: str, paths: list[str], place: Path) -> torch.Tensor:
    return of_classes(pipeline("image-classification", folder, top_k=None)(paths))


def by_trainer(folder: str, paths: list[str], place: Path) -> torch.Tensor:
    trainer = Trainer(AutoModelForImageClassification.from_pretrained(folder), settings(place))
    data = [{"pixel_values": image} for image in pixels_of(folder, paths)]
    return torch.from_numpy(trainer.predict(data).predictions).softmax(-1)


def by_code_of_the_folder(folder: str, paths: list[str], place: Path) -> torch.Tensor:
    """The classes that `trust_remote_code=True` loads where the package is not installed."""
    maps = auto_maps(
        *(json.loads(Path(folder, name).read_text()) for name in ("config.json", "preprocessor_config.json"))
    )
    names = {auto: name for auto_map in maps.values() for auto, name in auto_map.items()}
    for name, text in code_files(names.values()).items():
        (place / name).write_text(text)
    kinds = {auto: get_class_from_dynamic_module(name, str(place)) for auto, name in names.items()}
    assert not any(kind.__module__.startswith("retfound_hf") for kind in kinds.values())
    model = kinds["AutoModelForImageClassification"].from_pretrained(folder).eval()
    return model(**kinds["AutoImageProcessor"].from_pretrained(folder)(paths, return_tensors="pt")).logits.softmax(-1)


def by_jit(folder: str, paths: list[str], place: Path) -> torch.Tensor:
    model, pixels = (
        AutoModelForImageClassification.from_pretrained(folder, return_dict=False),
        pixels_of(folder, paths),
    )
    torch.jit.trace(model.eval(), pixels[:1]).save(place / "model.pt")
    return torch.jit.load(place / "model.pt")(pixels)[0].softmax(-1)


def by_onnx(folder: str, paths: list[str], place: Path) -> torch.Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = export(folder, place / "onnx", "onnx")
    pixels = AutoImageProcessor.from_pretrained(out)(paths, return_tensors="np").pixel_values
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"pixel_values": pixels})[0]).softmax(-1)


def by_timm(folder: str, paths: list[str], place: Path) -> torch.Tensor:
    timm = pytest.importorskip("timm")
    out = export(folder, place / "timm", "timm")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    return model(torch.stack([transform(Image.open(path)) for path in paths])).softmax(-1)


SHARDED = """
import sys
import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoImageProcessor, AutoModelForImageClassification
import retfound_hf

folder, output, *paths = sys.argv[1:]
dist.init_process_group("gloo")
model = AutoModelForImageClassification.from_pretrained(folder)
plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
plugin.set_auto_wrap_policy(model)
mesh, wrapped = init_device_mesh("cpu", (2,)), tuple(plugin.auto_wrap_policy.keywords["transformer_layer_cls"])
for module in list(model.modules()):
    if isinstance(module, wrapped):
        fully_shard(module, mesh=mesh)
fully_shard(model, mesh=mesh)
half = len(paths) // 2
own = paths[dist.get_rank() * half:][:half]
with torch.no_grad():
    logits = model(**AutoImageProcessor.from_pretrained(folder)(own, return_tensors="pt")).logits
gathered = [torch.empty_like(logits) for _ in range(2)]
dist.all_gather(gathered, logits)
if dist.get_rank() == 0:
    torch.save(torch.cat(gathered), output)
dist.barrier()
dist.destroy_process_group()
"""


def by_fsdp(folder: str, paths: list[str], place: Path) -> torch.Tensor:
    """Two processes with half of the weights each; which modules are sharded is Accelerate's own choice."""
    run_in_two(SHARDED, [folder, str(place / "logits.pt"), *paths], place)
    return torch.load(place / "logits.pt", weights_only=True).softmax(-1)


WAYS = {
    "`pipeline`": by_pipeline, "`Trainer.predict`": by_trainer, "code from the folder": by_code_of_the_folder,
    "`torch.jit.trace`": by_jit, "timm": by_timm, "ONNX": by_onnx, "FSDP, two processes": by_fsdp,
}  # fmt: skip
TABLE = re.findall(r"^\| ([^|]+) \|.*\| ([\de.-]+) \| ([\de.-]+) \|$", GUIDE.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[pytest.mark.slow] if way in ("ONNX", "FSDP, two processes") else []) for way in WAYS],
)
@torch.no_grad()
def test_every_way_agrees_with_evaluate(way, clinic, tmp_path, monkeypatch, record_property):
    """Of timm, which cannot cut off the surround and has a resizer of its own, on images without one."""
    bounds = {name: (float(found), float(bound)) for name, found, bound in TABLE}
    assert bounds.keys() == WAYS.keys()
    used = slice(6, None) if way == "timm" else slice(None)
    found = WAYS[way](clinic["folder"], clinic["paths"][used], tmp_path)
    difference = (found - clinic["expected"][used]).abs().max().item()
    record_property("difference", difference)
    measured, bound = bounds[way]
    assert difference <= bound and measured <= bound, difference
