"""Damaged files of every kind that is read: an error of this package in one line, or a result; no crash, no hang.

The default run tries a few hundred files of each kind, `--slow` some thousands. A crash ends the run itself; a file
that takes longer than `SECONDS`, or memory beyond `MEGABYTES`, is named.
"""

import json
import logging
import resource
import shutil
import signal
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mutations import mutated
from PIL import Image
from tiny import save_classifier

from retfound_hf.data.labelled import read_labelled
from retfound_hf.data.parquet import encoded_bytes
from retfound_hf.data.stored_images import open_files
from retfound_hf.errors import RetFoundError, UnreadableImageError
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.evaluation.report import ReportArguments, read_points
from retfound_hf.files import read_json
from retfound_hf.images.reading import read_image
from retfound_hf.inference.embed import EmbedArguments
from retfound_hf.models.conversion import convert_checkpoint
from retfound_hf.models.loading import load_classifier, load_processor
from retfound_hf.options import parse_arguments
from retfound_hf.pretraining.data import decode
from retfound_hf.pretraining.stream_shards import list_shards
from retfound_hf.pretraining.streaming import StreamedTable
from retfound_hf.study import tables
from retfound_hf.study.config import read_settings
from retfound_hf.study.perform import _stored
from retfound_hf.vocabulary import SINGLE_LABEL

SECONDS, MEGABYTES = 60, 1000  # of one file; a bound on time that a busy machine keeps too
COUNT = {False: 200, True: 3000}  # by --slow
MODEL_COUNT = {False: 50, True: 1000}  # where each takes tens of milliseconds


def saved(kind: str, **options) -> bytes:
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    if kind.startswith("TIFF"):
        picture = picture[..., 0].astype(np.uint16) * 257 if "16" in kind else picture
    file = BytesIO()
    Image.fromarray(picture).save(file, kind.split()[0], **options)
    return file.getvalue()


def dicom(syntax: str = "", frame: bytes = b"") -> bytes:
    import pydicom
    from pydicom.pixels import set_pixel_data

    dataset, file = pydicom.Dataset(), BytesIO()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.WindowCenter, dataset.WindowWidth = 1000, 2000
    set_pixel_data(dataset, np.arange(768, dtype=np.uint16).reshape(24, 32), "MONOCHROME2", 12)
    if frame:  # of a kind that pydicom does not write, or not as small
        set_pixel_data(dataset, np.zeros((24, 32, 3), np.uint8), "RGB", 8)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = pydicom.encaps.encapsulate([frame])
    elif syntax:
        dataset.compress(syntax)
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


IMAGES = {
    "JPEG": saved("JPEG"),
    "JPEG, progressive": saved("JPEG", progressive=True),
    "PNG": saved("PNG"),
    "TIFF": saved("TIFF", compression="tiff_lzw"),
    "TIFF of 16 bits": saved("TIFF 16"),
    "GIF": saved("GIF"),
    "WebP": saved("WEBP"),
    "JPEG 2000": saved("JPEG2000"),
    "BMP": saved("BMP"),
    "PPM": saved("PPM"),
    "DICOM": dicom(),
    "DICOM, run lengths": dicom("1.2.840.10008.1.2.5"),
    "DICOM, JPEG 2000": dicom("1.2.840.10008.1.2.4.90", saved("JPEG2000", no_jp2=True)),
    "DICOM, JPEG": dicom("1.2.840.10008.1.2.4.50", saved("JPEG")),
}


@pytest.fixture
def count(request):
    return COUNT[request.config.getoption("--slow")]


@pytest.fixture
def model_count(request):
    return MODEL_COUNT[request.config.getoption("--slow")]


@pytest.fixture
def survive(caplog):
    """Read damaged files; every one gives a result or an error of this package in one line, in time and in bounds."""
    caplog.set_level(logging.CRITICAL)

    def stop(number, frame):
        raise AssertionError(f"more than {SECONDS} s")

    def run(read, files):
        before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
        handler = signal.signal(signal.SIGALRM, stop)
        try:
            for number, content in enumerate(files):
                signal.alarm(SECONDS)
                try:
                    read(content)
                except RetFoundError as error:
                    refused += 1
                    assert "\n" not in str(error), (number, str(error))
                except Exception as error:
                    raise AssertionError(f"file {number}: {type(error).__name__}: {error}") from error
                used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
                assert used < MEGABYTES, f"file {number}: {used} MB"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, handler)
        return refused

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind, survive, count):
    if kind.startswith("DICOM"):
        pytest.importorskip("pydicom")
    files = list(mutated(IMAGES[kind], count))
    assert survive(read_image, files) > 0
    if not kind.startswith("DICOM"):
        survive(decode, files)


@pytest.fixture
def into(tmp_path):
    """A function that writes content to a file of the given name, and returns its path."""

    def write(name, content):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def parquet(table: pd.DataFrame) -> bytes:
    file = BytesIO()
    table.to_parquet(file)
    return file.getvalue()


def test_shards(into, survive, count, tmp_path):
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": IMAGES["PNG"], "path": f"{number}.png"} for number in range(4)]
    file = BytesIO()
    pq.write_table(pa.table({"image": pa.array(cells, cell), "id": list("abcd")}), file)

    def read(content):
        path = into("shard.parquet", content)
        for part in open_files(path).parts(9):
            assert len(part.refs) < 100
        table = StreamedTable(list_shards([str(path)]), tmp_path / "open", limit=2)
        try:
            for row in range(len(table)):
                decode_cell(table[row])
        finally:
            table.close()

    def decode_cell(row):
        with suppress(UnreadableImageError):
            decode(encoded_bytes(row["image"]))

    assert survive(read, mutated(file.getvalue(), count)) > 0


def archive(**contents: bytes) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for number, (name, content) in enumerate(contents.items()):
            kinds = (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
            made.writestr(name, content, kinds[number % len(kinds)])
    return file.getvalue()


@pytest.mark.parametrize("kind", ["csv", "parquet", "workbook"])
def test_tables(kind, into, survive, count):
    for number in range(12):
        into(f"images/{number}.png", IMAGES["PNG"])
    table = pd.DataFrame({"image": [f"images/{number}.png" for number in range(12)], "label": list("ab") * 6,
                          "patient_id": [f"p{number // 2}" for number in range(12)]})  # fmt: skip
    kinds = {"csv": table.to_csv(index=False).encode(), "parquet": parquet(table),
             "workbook": archive(**{"[Content_Types].xml": b"<Types/>", "xl/workbook.xml": b"<book/>"})}  # fmt: skip
    files, suffix = mutated(kinds[kind], count // 2, text=kind == "csv"), "parquet" if kind == "parquet" else "csv"
    assert survive(lambda content: read_labelled(str(into(f"table.{suffix}", content)), need_splits=()), files) > 0


def test_archives(survive, count):
    pytest.importorskip("gradio")
    from retfound_hf.app.uploads import Archive, Limits

    def read(content):
        for _, image in Archive(BytesIO(content), Limits()):
            with suppress(UnreadableImageError):
                read_image(image)

    whole = archive(**{f"{name}.png": IMAGES["PNG"][:300] for name in "abcd"})
    assert survive(read, mutated(whole, count)) > 0


def test_results(into, survive, count):
    """Files that a run has written and another reads: predictions and thresholds."""
    found = Predictions(
        list("abc"), np.array([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]]), np.array([0, 1, 1]), ("a", "b"), SINGLE_LABEL
    )
    path = into("predictions.csv", b"")
    found.to_csv(path)
    files = mutated(path.read_bytes(), count, text=True)
    assert survive(lambda content: Predictions.read_csv(into("predictions.csv", content)), files) > 0
    points = {"points": [{"label": "a", "criterion": "youden", "target": None, "threshold": 0.4}], "level": "image",
              "aggregate": "mean"}  # fmt: skip

    def read(content):
        read_points(into("operating_points.json", content).parent, ("a", "b"), ReportArguments())

    assert survive(read, mutated(json.dumps(points).encode(), count, text=True)) > 0


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("models") / "classifier", ("a", "b"))


@pytest.mark.parametrize(
    ("name", "load"),
    [("config.json", load_classifier), ("preprocessor_config.json", load_processor),
     ("model.safetensors", load_classifier)],
)  # fmt: skip
def test_files_of_a_model(name, load, classifier, survive, count, model_count):
    path = classifier / name
    whole = path.read_bytes()
    counts = {"config.json": count // 2, "preprocessor_config.json": count, "model.safetensors": model_count}

    def read(content):
        path.write_bytes(content)
        load(str(classifier))

    try:
        assert survive(read, mutated(whole, counts[name], text=name.endswith(".json"))) > 0
    finally:
        path.write_bytes(whole)


def official(depth: int = 2, width: int = 64) -> dict[str, torch.Tensor]:
    """Tensors of a small encoder under the names of the official files."""
    from retfound_hf.models.key_tables import encoder_rows

    rows = [*encoder_rows(width, 2 * width, depth, 4, 17)]
    state = {row.source: torch.zeros(row.shape) for row in rows}
    return {**state, "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}


def test_checkpoints(into, survive, model_count, tmp_path):
    file = BytesIO()
    torch.save({"model": official()}, file)

    def read(content):
        convert_checkpoint(into("cfp.pth", content), tmp_path / "out", modality="cfp", overwrite=True)

    assert survive(read, mutated(file.getvalue(), model_count)) > 0


HUGE = {
    "depth": {"blocks.999999.attn.qkv.weight": torch.zeros(1)},
    "decoder": {"decoder_blocks.99999.attn.qkv.weight": torch.zeros(1), "mask_token": torch.zeros(1, 1, 64)},
    "view": {"norm.bias": torch.zeros(1).expand(10**10)},
    "empty": {"pos_embed": torch.zeros(1, 0, 64)},
    "flat": {"pos_embed": torch.zeros(64)},
    "sparse": {"norm.bias": torch.zeros(64).to_sparse()},
    "bytes": {b"norm.bias": torch.zeros(64)},
    "narrow": {"cls_token": torch.zeros(1, 1, 0)},
}


@pytest.mark.parametrize("kind", HUGE)
def test_checkpoints_that_name_what_they_do_not_hold(kind, into, survive, tmp_path):
    file = BytesIO()
    torch.save({"model": {**official(), **HUGE[kind]}}, file)
    path = into("cfp.pth", file.getvalue())
    assert survive(lambda _: convert_checkpoint(path, tmp_path / "out", modality="cfp"), [b""]) == 1


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "patch_size"])
@pytest.mark.parametrize("value", ["32", -1, 10**9, [1], 60_000, None, 0])
def test_configurations_that_ask_for_more_than_there_is(classifier, survive, name, value):
    path = classifier / "config.json"
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), name: value}))
    try:
        assert survive(lambda _: load_classifier(str(classifier)), [b""]) == 1
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_options_and_records(suffix, into, survive, count):
    options = {"model_name_or_path": "a", "data": "b", "part_size": 7}
    whole = (
        json.dumps(options).encode()
        if suffix == "json"
        else "".join(f"{k}: {v}\n" for k, v in options.items()).encode()
    )
    files = list(mutated(whole, count, text=True))

    def read(content):
        try:
            parse_arguments(EmbedArguments, argv=[str(into(f"options.{suffix}", content))])
        except SystemExit as error:
            assert error.code == 2

    survive(read, files)
    if suffix == "json":
        assert survive(lambda content: read_json(into("state.json", content)), files) > 0


def test_study_files(into, survive, count):
    whole = (Path(__file__).parents[1] / "scripts/studies/synthetic.yaml").read_bytes()
    assert survive(lambda content: read_settings(into("study.yaml", content)), mutated(whole, count, text=True)) > 0


ADAPTERS = {"r": 10**9, "rank_pattern": {"query": 10**9}, "peft_type": "X", "lora_alpha": "x", "target_modules": 5,
            "base_model_name_or_path": None, "exclude_modules": "(([a-z.0-9])+.)+[A-Z]([a-z])+$",
            "alpha_pattern": {"(.*a){25}": 2}, "layers_pattern": ".*.*.*.*.*=",
            "megatron_config": {"a": 1}}  # fmt: skip


@pytest.mark.parametrize("name", [*ADAPTERS, "itself", "weights"])
def test_adapters(name, classifier, survive, tmp_path):
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "adapter"
    shutil.copytree(classifier, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = LoraConfig(r=2, target_modules=["query"], modules_to_save=["fc_norm", "classifier"])
    get_peft_model(load_classifier(str(classifier)), config).save_pretrained(folder)
    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    settings = {**json.loads(path.read_text()), "base_model_name_or_path": str(classifier)}
    path.write_text(json.dumps(settings))
    assert load_classifier(str(folder)).config.num_labels == 2
    if name == "weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        base = {"base_model_name_or_path": str(folder)} if name == "itself" else {name: ADAPTERS[name]}
        path.write_text(json.dumps({**settings, **base}))
    assert survive(lambda _: load_classifier(str(folder)), [b""]) == 1


def numpy_bytes(save, *arrays, **named) -> bytes:
    file = BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def test_statistics_of_a_study(into, survive, count):
    """A damaged file of a study's cache is computed anew: the numbers are those of a whole one."""
    rng = np.random.default_rng(0)
    scores = rng.random((40, 1))
    found = Predictions(None, np.c_[scores, 1 - scores], rng.integers(0, 2, 40), ("a", "b"), SINGLE_LABEL)
    expected = tables.resample(found, ["auroc"], 100)
    path = into("statistics.npz", b"")
    tables._save(path, expected)
    whole = path.read_bytes()

    def read(content):
        path.write_bytes(content)
        with suppress(Exception):  # of any type: then it is computed anew
            assert repr(tables._load(path)) == repr(expected)
            return
        raise RetFoundError("not read")

    assert repr(tables._load(into("statistics.npz", whole))) == repr(expected)
    assert survive(read, mutated(whole, count)) > 0
    with np.load(BytesIO(whole)) as stored:
        arrays = dict(stored)
    wrong = [{"names": np.array(["auroc"], object)}, {"0-drawn": np.zeros((100, 2))}, {"0-value": np.zeros(3)},
             {"0-drawn": np.zeros(7)}, {"0-low": np.array({}, object)}]  # fmt: skip
    others = [numpy_bytes(np.savez, **{**arrays, **change}) for change in wrong]
    others += [
        numpy_bytes(np.savez_compressed, **{**arrays, "0-drawn": np.zeros(10**8)}),
        numpy_bytes(np.save, scores),
    ]
    assert survive(read, others) == len(others)


def test_cached_features_of_a_study(into, survive, count):
    whole = numpy_bytes(np.save, np.random.default_rng(0).random((5, 3), np.float32))
    assert np.array_equal(_stored(into("features.npy", whole), (5, 3)), np.load(BytesIO(whole)))

    def read(content):
        found = _stored(into("features.npy", content), (5, 3))
        if found is None:
            raise RetFoundError("not read")
        assert np.asarray(found).nbytes == 60

    assert survive(read, mutated(whole, count)) > 0
    wrong = [np.zeros((4, 3), np.float32), np.zeros((5, 3)), np.zeros(5, np.float32), np.array([{}] * 5, object)]
    others = [numpy_bytes(np.save, array) for array in wrong] + [
        numpy_bytes(np.savez, np.zeros((5, 3), np.float32)),
        b"",
    ]
    assert survive(read, others) == len(others)
